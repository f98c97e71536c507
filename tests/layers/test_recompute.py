import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests import toy_model
from tests.contract import random_normal, randomize
from tl_tf import memory
from tl_tf.layers import attention, conv2plus1d, recompute
from tl_tf.models import vit, vivit, x2p1d

B, L, C, K = 2, 5, 6, 7
SEED = tf.constant([3, 4])
VIT = {"image_px": (24, 40), "patch_px": 8, "insert_before_block": 1, "num_tokens": 3}
BLOCKS = {"hidden_size": 12, "depth": 3, "num_heads": 2, "mlp_size": 20}
RATES = {"dropout_rate": 0.1, "attention_dropout_rate": 0.2, "drop_path_rate": 0.3}
MODELS = {
    "vit": (vit.build_vit, VIT | BLOCKS | RATES | {"restore": "fuser"}, [24, 40, 3]),
    "vivit": (
        vivit.build_vivit,
        VIT | BLOCKS | RATES | {"num_frames": 4, "encoder_form": "factorised"},
        [4, 24, 40, 3],
    ),
    "x2p1d": (
        x2p1d.build_x2p1d,
        {"num_frames": 2, "stage_depths": (1, 2, 1, 1), "width": 0.2}
        | {"module": "token_learner", "module_blocks": (0,), "nested_dropout": True},
        [2, 64, 96, 3],
    ),
}


def gradients_of(model, x, *, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def gradients():
        with tf.GradientTape() as tape:
            logits, _ = model(x, training=True, seed=SEED)
            loss = tf.reduce_sum(logits * random_normal(*logits.shape))
        return tape.gradient(loss, model.trainable_variables)

    return [tf.convert_to_tensor(g).numpy() for g in gradients()]


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("build, options, example", MODELS.values(), ids=MODELS)
def test_a_model_has_the_same_gradients(build, options, example, jit_compile):
    plain, again = (build(K, recompute=flag, **options) for flag in (False, True))
    randomize(plain)
    again.set_weights(plain.get_weights())
    x = random_normal(3, *example)
    want = gradients_of(plain, x, jit_compile=jit_compile)
    got = gradients_of(again, x, jit_compile=jit_compile)
    largest = max(np.abs(w).max() for w in want)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-5 * largest)
    for one, other in zip(
        again.non_trainable_variables, plain.non_trainable_variables, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_a_block_has_the_same_gradients(policy, jit_compile):
    tf_keras.mixed_precision.set_global_policy(policy)
    block = attention.EncoderBlock(2, 11, dropout_rate=0.3, drop_path_rate=0.4)
    x = tf.constant(random_normal(B, L, C))
    block(x)
    randomize(block)

    def gradients(call):
        @tf.function(jit_compile=jit_compile)
        def run():
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(tf.cast(call(x), tf.float32) ** 2)
            return tape.gradient(y, [x, *block.trainable_variables])

        return run()

    got = gradients(lambda x: recompute.call(block, x, seed=SEED))
    want = gradients(lambda x: block(x, training=True, seed=SEED))
    # What is fused rounds once: not the same operations in both passes.
    close = 1e-4 if policy == "float32" else 0.02
    largest = max(np.abs(w).max() for w in want)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=close, atol=close * largest)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_moving_statistics_move_once(jit_compile):
    x = tf.constant(random_normal(B, 2, 6, 8, 5, scale=3.0))
    moved = []
    for is_again in (False, True):
        block = conv2plus1d.Conv2Plus1DBlock(3, 4)
        block(x)
        randomize(block)

        @tf.function(jit_compile=jit_compile)
        def step(block=block, is_again=is_again):
            with tf.GradientTape() as tape:
                if is_again:
                    y, _ = recompute.call(block, x, seed=None)
                else:
                    y, _ = block(x, training=True)
                loss = tf.reduce_sum(y**2)
            return tape.gradient(loss, block.trainable_variables)

        step()
        moved.append([v.numpy() for v in block.non_trainable_variables])
        assert {n.momentum for n in block.submodules if hasattr(n, "momentum")} == {0.9}
    for got, want in zip(*reversed(moved), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_replicas_have_the_same_gradients():
    strategy = toy_model.two_replicas()
    with strategy.scope():
        dense = tf_keras.layers.Dense(3)
        dense.build([None, C])
    x = tf.constant(random_normal(B, C))

    def gradient(call):
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(call(x) ** 2)
        (g,) = tape.gradient(y, [dense.kernel])
        return tf.distribute.get_replica_context().all_reduce("sum", g)

    class Layer(tf_keras.layers.Layer):
        def call(self, x, training=False, seed=None):
            return dense(x)

    layer = Layer()
    run = tf.function(lambda call: strategy.run(gradient, args=(call,)))
    got, want = (
        strategy.experimental_local_results(run(call))[0]
        for call in (lambda x: recompute.call(layer, x, seed=None), dense)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_after_changes_nothing():
    x, first = tf.constant(random_normal(B, C)), tf.constant(random_normal(L, K))
    with tf.GradientTape() as tape:
        tape.watch([x, first])
        y = tf.reduce_sum(recompute.after(x, first) ** 2)
    dx, dfirst = tape.gradient(y, [x, first])
    np.testing.assert_allclose(y, np.sum(x.numpy() ** 2), rtol=1e-6)
    np.testing.assert_allclose(dx, 2 * x, rtol=1e-6)
    np.testing.assert_array_equal(dfirst, np.zeros([L, K]))


def test_the_estimate_of_memory_knows():
    plain, again = (
        memory.estimate(
            vit.build_vit(K, image_px=32, patch_px=4, recompute=flag, **BLOCKS),
            [1, 32, 32, 3],
        )
        for flag in (False, True)
    )
    assert again.kept_bytes < 0.4 * plain.kept_bytes
    assert again.training_bytes < 0.7 * plain.training_bytes
    assert again.inference_bytes == plain.inference_bytes
