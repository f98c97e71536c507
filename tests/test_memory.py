import math

import pytest
import tensorflow as tf
import tf_keras

from tl_tf import memory
from tl_tf.layers import vector_attention
from tl_tf.models import vit, vivit, x2p1d

B, M, K = 3, 5, 7  # examples, channels in, channels out
FLOAT = 4  # bytes


class Chain(tf_keras.Model):
    """[B, M] -> [B, K], softmax, twice its square, [B]."""

    def __init__(self):
        super().__init__(name="chain")
        self.dense = tf_keras.layers.Dense(K, use_bias=False)

    def call(self, x, training=False, seed=None):
        x = tf.nn.softmax(self.dense(x))  # in place of the product
        x = tf.reshape(x, [-1, 1, K])  # a view
        return tf.reduce_sum(2.0 * tf.square(x), axis=[1, 2]), {"unused": x + 1.0}


@pytest.fixture(scope="module")
def chain():
    model = Chain()
    model(tf.zeros([B, M]))
    return memory.estimate(model, [B, M])


def test_inference_holds_what_is_still_read(chain):
    """The product, while its input is there; all after it is written in its place."""
    assert chain.inference_bytes == FLOAT * B * (M + K)


def test_training_keeps_what_the_gradient_reads(chain):
    """The input for the weight's gradient, the softmax for its own and the square's.

    A doubling needs nothing, and the endpoint is not computed.
    """
    assert chain.kept_bytes == FLOAT * B * (M + K)
    assert chain.training_bytes >= chain.kept_bytes
    assert chain.weight_bytes == chain.trainable_bytes == FLOAT * M * K


@pytest.mark.parametrize(
    "build, options, example",
    [
        (
            vit.build_vit,
            {"hidden_size": 12, "depth": 3, "num_heads": 2, "mlp_size": 20}
            | {"image_px": (24, 40), "patch_px": 8, "insert_before_block": 1}
            | {"tokenizer": "v1.0", "restore": "fuser", "dropout_rate": 0.1},
            [24, 40, 3],
        ),
        (
            vivit.build_vivit,
            {"hidden_size": 12, "depth": 2, "num_heads": 2, "mlp_size": 20}
            | {"num_frames": 5, "image_px": (24, 40), "patch_px": 8}
            | {"insert_before_block": 1, "restore": "fuser", "dropout_rate": 0.1},
            [5, 24, 40, 3],
        ),
        (
            x2p1d.build_x2p1d,
            {"num_frames": 2, "stage_depths": (1, 1, 1, 1), "width": 0.2}
            | {"module": "token_learner", "module_blocks": (0,)},
            [2, 48, 80, 3],
        ),
    ],
)
def test_activations_grow_with_the_batch(build, options, example):
    model = build(K, **options)
    one, five = (memory.estimate(model, [size, *example]) for size in (1, 5))
    for name in ("inference_bytes", "kept_bytes", "training_bytes"):
        ratio = getattr(five, name) / getattr(one, name)
        assert ratio == pytest.approx(5, rel=0.05), name  # constants do not grow
    assert 0 < one.inference_bytes < one.kept_bytes < one.training_bytes
    assert one.inference_bytes >= FLOAT * math.prod(example)


def test_learned_tokens_save_memory():
    sizes = {"hidden_size": 12, "depth": 4, "num_heads": 2, "mlp_size": 20}
    sizes |= {"image_px": 48, "patch_px": 4, "tokenizer": "v1.0"}
    plain, reduced = (
        memory.estimate(
            vit.build_vit(K, insert_before_block=block, **sizes), [1, 48, 48, 3]
        )
        for block in (None, 2)
    )
    assert reduced.kept_bytes < 0.6 * plain.kept_bytes


def test_what_is_kept_is_told_by_its_maker(chain):
    """The input is made by nobody, the softmax by the model itself."""
    assert dict(chain.kept_by_scope) == {"": FLOAT * B * (M + K)}


def test_training_may_look_at_another_size():
    model = Chain()
    model(tf.zeros([B, M]))
    wide, one = (
        memory.estimate(model, [B, M], training_shape=shape)
        for shape in ([2 * B, M], None)
    )
    assert wide.inference_bytes == one.inference_bytes
    assert wide.kept_bytes == 2 * one.kept_bytes


class Dynamic(tf_keras.Model):
    def call(self, x, training=False, seed=None):
        return tf.boolean_mask(x, x[:, 0] > 0)


def test_dynamic_shapes_are_refused():
    with pytest.raises(ValueError, match="wanted static ones"):
        memory.estimate(Dynamic(), [2, 8])


def test_vector_attention_over_many_tokens_is_estimated():
    """Of more than MIN_FAST_TOKENS: as in the recipes at their full size."""
    tokens = 2 * vector_attention.MIN_FAST_TOKENS

    class Attention(tf_keras.Model):
        def __init__(self):
            super().__init__(name="attention")
            self.attend = vector_attention.VectorTransformer(name="attend")

        def call(self, x, training=False, seed=None):
            return tf.reduce_sum(self.attend(x), axis=[1, 2]), {}

    model = Attention()
    model(tf.zeros([1, 2, M]))
    one = memory.estimate(model, [1, tokens, M])
    assert one.inference_bytes >= 2 * FLOAT * tokens * M  # an input and an output
    assert model.attend.implementation == "auto"
