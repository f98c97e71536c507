import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import attention

B, L, M, C = 2, 5, 7, 6
HEADS, HIDDEN = 3, 11
SIZES = {"B": B, "L": L, "M": M, "C": C}
SEED = tf.constant([3, 4])
# A softmax over keys does not see what is added to all of its scores.
KEY_BIAS = ("key/bias",)


def assert_close(got, want, tolerance=1e-5):
    limit = tolerance * np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=limit)


def weights_of(layer):
    return layer.kernel.numpy(), layer.bias.numpy()


def norm(layer, x):
    return reference.layer_norm(x, layer.gamma.numpy(), layer.beta.numpy())


def attend(layer, x, y):
    projections = (layer.query, layer.key, layer.value, layer.out)
    return reference.attend(x, y, *map(weights_of, projections))


def built(layer, *inputs):
    layer(*inputs)
    randomize(layer)
    return layer


def test_mlp_keeps_the_contract():
    check_layer(attention.Mlp(HIDDEN), SIZES)


def test_attention_keeps_the_contract():
    check_layer(attention.Attention(HEADS), SIZES, zero_gradients=KEY_BIAS)


def test_encoder_block_keeps_the_contract():
    block = attention.EncoderBlock(HEADS, HIDDEN)
    check_layer(block, SIZES, zero_gradients=KEY_BIAS)


def test_gelu_is_the_tanh_form():
    x = np.linspace(-4, 4, 33).astype(np.float32)
    assert_close(attention.gelu(x), reference.gelu(x.astype(np.float64)), 1e-6)


def test_layer_norm_has_flax_epsilon():
    x = random_normal(B, L, C, scale=1e-3)  # a small variance shows the epsilon
    layer = built(attention.layer_norm("norm"), x)
    assert_close(layer(x), norm(layer, x), 1e-4)


def test_mlp_is_equation_3():
    x = random_normal(B, L, C)
    layer = built(attention.Mlp(HIDDEN), x)
    want = reference.mlp(x, weights_of(layer.hidden), weights_of(layer.out))
    assert_close(layer(x), want)


def test_attention_is_the_sum_over_heads():
    x, y = random_normal(B, L, C), random_normal(B, M, C, seed=1)
    layer = built(attention.Attention(HEADS), x, y)
    assert_close(layer(x, y), attend(layer, x, y))


def test_encoder_block_is_equations_2_and_3():
    x = random_normal(B, L, C)
    block = built(attention.EncoderBlock(HEADS, HIDDEN), x)
    y = norm(block.attention_norm, x)
    z = x + attend(block.attention, y, y)
    hidden, out = weights_of(block.mlp.hidden), weights_of(block.mlp.out)
    want = z + reference.mlp(norm(block.mlp_norm, z), hidden, out)
    assert_close(block(x), want)


def test_kernels_start_as_those_of_a_square_matrix():
    channels, heads = 96, 4
    layer = attention.Attention(heads)
    layer(random_normal(1, 2, channels), random_normal(1, 2, channels))
    for projection in (layer.query, layer.key, layer.value, layer.out):
        glorot = np.sqrt(2 / (channels + channels))
        np.testing.assert_allclose(projection.kernel.numpy().std(), glorot, rtol=0.05)
        np.testing.assert_array_equal(projection.bias, np.zeros(projection.bias.shape))


def test_channels_that_heads_do_not_divide_are_refused():
    layer = attention.Attention(4, name="attention")
    with pytest.raises(ValueError, match="multiple of num_heads=4, got 6"):
        layer(random_normal(B, L, C), random_normal(B, M, C))


DROPS = {"dropout": attention.dropout, "drop_path": attention.drop_path}


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_a_drop_is_drawn_by_seed_and_draw(drop):
    x = tf.ones([64, 3])

    def draw(seed=SEED, number=0):
        return drop(x, 0.5, training=True, seed=seed, draw=number).numpy()

    np.testing.assert_array_equal(draw(), draw())
    assert (draw() != draw(number=1)).any()
    assert (draw() != draw(seed=tf.constant([3, 5]))).any()


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_a_drop_keeps_the_expectation(drop):
    got = drop(tf.ones([20_000, 2]), 0.3, training=True, seed=SEED, draw=0).numpy()
    np.testing.assert_allclose(got.mean(), 1, rtol=0.02)
    np.testing.assert_allclose(np.unique(got), [0, 1 / 0.7], rtol=1e-5)


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_nothing_is_dropped_in_evaluation_or_at_rate_0(drop):
    x = tf.ones([4, 3])
    assert drop(x, 0.9, training=False, seed=None, draw=0) is x
    assert drop(x, 0.0, training=True, seed=None, draw=0) is x


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_a_drop_needs_a_seed(drop):
    with pytest.raises(
        ValueError, match=r"dropout needs a seed, int32 \[2\], got None"
    ):
        drop(tf.ones([4, 3]), 0.5, training=True, seed=None, draw=0)


def test_drop_path_drops_whole_examples():
    x = tf.ones([64, 3, 2])
    got = attention.drop_path(x, 0.5, training=True, seed=SEED, draw=0).numpy()
    per_example = got.reshape(64, -1)
    assert (per_example == per_example[:, :1]).all()
    assert 0 < (per_example[:, 0] == 0).sum() < 64


def test_drop_path_runs_with_an_unknown_number_of_examples():
    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def run(x):
        return attention.drop_path(x, 0.5, training=True, seed=SEED, draw=0)

    x = tf.ones([8, 3])
    want = attention.drop_path(x, 0.5, training=True, seed=SEED, draw=0)
    np.testing.assert_array_equal(run(x), want)


@pytest.mark.parametrize(
    "rate", ["dropout_rate", "attention_dropout_rate", "drop_path_rate"]
)
def test_a_block_draws_by_its_seed_alone(rate):
    x = random_normal(8, L, C)
    block = built(attention.EncoderBlock(HEADS, HIDDEN, **{rate: 0.5}), x)

    def train(seed):
        return block(x, training=True, seed=seed).numpy()

    np.testing.assert_array_equal(train(SEED), train(SEED))
    assert (train(SEED) != train(tf.constant([0, 4]))).any()
    assert (train(SEED) != block(x).numpy()).any()
    np.testing.assert_array_equal(block(x), block(x, seed=SEED))
    with pytest.raises(ValueError, match="dropout needs a seed"):
        block(x, training=True)


def test_both_branches_of_a_block_draw_for_themselves():
    x = random_normal(64, L, C)
    block = built(attention.EncoderBlock(HEADS, HIDDEN, drop_path_rate=0.5), x)
    got = block(x, training=True, seed=SEED).numpy()
    y = norm(block.attention_norm, x)
    attended = 2 * attend(block.attention, y, y)
    hidden, out = weights_of(block.mlp.hidden), weights_of(block.mlp.out)
    found = set()
    for keeps_attention in (0, 1):
        z = x + keeps_attention * attended
        transformed = 2 * reference.mlp(norm(block.mlp_norm, z), hidden, out)
        for keeps_mlp in (0, 1):
            want = z + keeps_mlp * transformed
            error = np.abs(got - want).max(axis=(1, 2))
            if (error < 1e-4).any():
                found.add((keeps_attention, keeps_mlp))
    assert len(found) == 4


# More scores than are held whole: the queries come in three chunks.
@pytest.fixture
def in_chunks(monkeypatch):
    monkeypatch.setattr(attention, "WHOLE_SCORES", L * M - 1)
    monkeypatch.setattr(attention, "CHUNK_QUERIES", 2)


def heads_of(length, *, size, seed):
    return tf.constant(random_normal(B, length, HEADS, size, seed=seed))


def gradients_of(*inputs, jit_compile=False, **options):
    @tf.function(jit_compile=jit_compile)
    def run():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = attention.attend(*inputs, **options)
            loss = tf.reduce_sum(y * random_normal(*y.shape, seed=9))
        return y, *tape.gradient(loss, inputs)

    return run()


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("scale", [None, 0.4])
def test_chunks_attend_as_the_whole(request, jit_compile, scale):
    inputs = [heads_of(length, size=4, seed=i) for i, length in enumerate([L, M])]
    inputs.append(heads_of(M, size=3, seed=2))
    want = gradients_of(*inputs, scale=scale)
    request.getfixturevalue("in_chunks")
    got = gradients_of(*inputs, scale=scale, jit_compile=jit_compile)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w.numpy())


def test_chunks_are_the_layers_as_well(in_chunks):
    x, y = random_normal(B, L, C), random_normal(B, M, C, seed=1)
    layer = built(attention.Attention(HEADS), x, y)
    assert_close(layer(x, y), attend(layer, x, y))


def test_chunks_drop_by_the_seed_in_both_passes(in_chunks):
    """A gradient by differences, which another draw in the backward pass would miss."""
    q, k, v = (heads_of(n, size=4, seed=i) for i, n in enumerate([L, M, M]))
    options = {"dropout_rate": 0.5, "seed": SEED}
    y, dq, _, dv = gradients_of(q, k, v, **options)
    np.testing.assert_array_equal(y, gradients_of(q, k, v, **options)[0])
    other = attention.attend(q, k, v, dropout_rate=0.5, seed=SEED + 1)
    assert (y.numpy() != other.numpy()).any()
    for place, (x, dx) in enumerate(zip((q, v), (dq, dv), strict=True)):
        step = 1e-2 * random_normal(*x.shape, seed=5)
        ends = []
        for sign in (-1, 1):
            inputs = [q, k, v]
            inputs[2 * place] = x + sign * step
            end = attention.attend(*inputs, **options)
            ends.append(np.sum(end * random_normal(*end.shape, seed=9)))
        want = (ends[1] - ends[0]) / 2
        np.testing.assert_allclose(np.sum(dx * step), want, rtol=2e-2)
