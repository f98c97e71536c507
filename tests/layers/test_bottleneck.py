import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import bottleneck

B, T, H, W, C, S, N, A = 2, 3, 5, 7, 6, 4, 11, 3
SIZES = {"B": B, "T": T, "H": H, "W": W, "C": C, "S": S, "N": N}
CLIP = (B, T, H, W, C)


def built(layer, x):
    layer(x)
    randomize(layer)
    return layer


def mhsa(x, query, key, value):
    """One clip, one head and one query at a time; x [B, N, C], kernels [C, ...]."""
    b, n, c = x.shape
    out = np.zeros([b, n, c])
    for clip, head in np.ndindex(b, A):
        q, k, v = (
            np.split(x[clip] @ np.asarray(kernel, np.float64), A, axis=1)[head]
            for kernel in (query, key, value)
        )
        for i in range(n):
            weights = reference.softmax(k @ q[i] / 4, axis=0)  # 4 is sqrt(16)
            out[clip, i, head * c // A : (head + 1) * c // A] = weights @ v
    return out


@pytest.mark.parametrize(
    "layer", [bottleneck.Mhsa(A), bottleneck.PriorAttention(), bottleneck.MlpMixer()]
)
def test_transformers_keep_the_contract(layer):
    check_layer(layer, SIZES)


def test_mhsa_is_the_standard_one():
    x = random_normal(B, N, C)
    layer = built(bottleneck.Mhsa(A), x)
    want = mhsa(x, *(w.numpy() for w in layer.weights))
    np.testing.assert_allclose(layer(x), want, atol=1e-5)


def test_mhsa_has_the_papers_sizes():
    layer = bottleneck.Mhsa()
    layer(tf.zeros([1, 2, 432]))
    assert [w.shape.as_list() for w in layer.weights] == [
        [432, 128],
        [432, 128],
        [432, 432],
    ]


def test_prior_attention_weighs_by_a_learned_matrix():
    x = random_normal(B, N, C)
    layer = bottleneck.PriorAttention()
    layer(x)
    mean = np.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)
    np.testing.assert_allclose(layer(x), mean @ layer.value.kernel.numpy(), atol=1e-5)
    randomize(layer)
    scores, value = (w.numpy() for w in (layer.scores, layer.value.kernel))
    want = reference.softmax(scores, axis=1) @ (x @ value)
    np.testing.assert_allclose(layer(x), want, atol=1e-5)


def test_mlp_mixer_is_equation_1():
    x = random_normal(B, N, C)
    layer = built(bottleneck.MlpMixer(), x)

    def norm(y, norm):
        return reference.layer_norm(y, norm.gamma.numpy(), norm.beta.numpy())

    def mlp(y, mlp):
        pairs = [[w.numpy() for w in d.weights] for d in (mlp.hidden, mlp.out)]
        return reference.mlp(y, *pairs)

    u = np.swapaxes(norm(x, layer.token_norm), 1, 2)
    u = x + np.swapaxes(mlp(u, layer.token_mlp), 1, 2)
    want = u + mlp(norm(u, layer.channel_norm), layer.channel_mlp)
    np.testing.assert_allclose(layer(x), want, atol=1e-4)
    assert layer.token_mlp.hidden.units == N
    assert layer.channel_mlp.hidden.units == C


@pytest.mark.parametrize("transformer", ["mhsa", "vector"])
@pytest.mark.parametrize("axes", bottleneck.AXES)
def test_grid_attention_keeps_the_contract(axes, transformer):
    check_layer(bottleneck.GridAttention(axes, transformer, num_heads=A), SIZES)


@pytest.mark.parametrize("axes", bottleneck.AXES)
def test_grid_attention_attends_over_its_axes_alone(axes):
    x = random_normal(*CLIP)
    layer = built(bottleneck.GridAttention(axes, num_heads=A), x)
    weights = [w.numpy() for w in layer.weights]
    want = np.zeros(CLIP)
    if axes == "joint":
        want = mhsa(x.reshape(B, -1, C), *weights).reshape(CLIP)
    elif axes == "temporal":
        for i, j in np.ndindex(H, W):
            want[:, :, i, j] = mhsa(x[:, :, i, j], *weights)
    else:
        for t in range(T):
            want[:, t] = mhsa(x[:, t].reshape(B, -1, C), *weights).reshape(B, H, W, C)
    np.testing.assert_allclose(layer(x), want, atol=1e-5)


@pytest.mark.parametrize("transformer", ["mhsa", "vector"])
@pytest.mark.parametrize(
    "axes, reached",
    [
        ("joint", lambda t, i, j: True),
        ("temporal", lambda t, i, j: (i, j) == (2, 4)),
        ("spatial", lambda t, i, j: t == 1),
    ],
)
def test_a_cell_reaches_those_on_its_axes(axes, reached, transformer):
    x = random_normal(*CLIP)
    layer = built(bottleneck.GridAttention(axes, transformer, num_heads=A), x)
    moved = x.copy()
    moved[:, 1, 2, 4] += 1
    difference = np.abs(layer(moved) - layer(x)).max(axis=(0, 4))
    want = np.fromfunction(np.vectorize(reached), (T, H, W))
    np.testing.assert_array_equal(difference > 1e-6, want)


@pytest.mark.parametrize(
    "tokenizer, options, zero_gradients",
    [
        ("bottleneck", {}, ()),
        ("bottleneck", {"use_projection": True, "mixing": "per_token"}, ()),
        ("v1.0", {"beta": "conv", "zero_init": True}, ()),
        (
            "v1.1",
            {"mixing": "per_frame", "beta": "mlp", "use_norm": True},
            ("scores/bias", "mix_bias"),
        ),
        ("bottleneck", {"transformer": "mhsa", "num_heads": A}, ()),
        ("bottleneck", {"restore": "broadcast"}, ()),
        ("v1.1", {"restore": "unpool", "transformer": "prior"}, ("scores/bias",)),
        ("volume", {"window_frames": T, "restore": "unpool"}, ()),
        ("volume", {"window_frames": T}, ()),
    ],
)
def test_token_module_keeps_the_contract(tokenizer, options, zero_gradients):
    layer = bottleneck.TokenModule(S, tokenizer, **options)
    sizes = {**SIZES, "M": T // layer.window_frames}
    check_layer(layer, sizes, zero_gradients=zero_gradients)


def test_token_module_attends_over_all_frames():
    x = random_normal(B, T, H, W, C)
    layer = built(bottleneck.TokenModule(S), x)
    clip, tokens, maps = layer(x)

    learner, fuser = layer.token_learner, layer.token_fuser
    kernel, bias = (w.numpy() for w in learner.scores.weights)
    frames = x.reshape(B * T, H, W, C)
    want_maps = reference.sigmoid(reference.conv2d(frames, kernel, bias))
    want_tokens = reference.pool(want_maps, frames) / (H * W)
    z = want_tokens.reshape(B, T * S, C)
    q, k, v = (z @ w.numpy() for w in layer.transformer.weights)
    y = reference.vector_attention(q, k, v).reshape(B, T, S, C)
    y = reference.mix(y, fuser.mix.numpy(), "joint")
    cells = x.reshape(B, T, H * W, C)
    kernel, bias = (w.numpy() for w in fuser.beta.weights)
    fused = reference.fuse(y, cells, reference.sigmoid(cells @ kernel + bias))

    np.testing.assert_allclose(maps, want_maps.reshape(B, T, H, W, S), atol=1e-5)
    np.testing.assert_allclose(tokens, want_tokens.reshape(B, T, S, C), atol=1e-5)
    np.testing.assert_allclose(clip, (cells + fused).reshape(x.shape), atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"tokenizer": "grid"},
        {"tokenizer": "dense", "dense_grid": (2, 3)},
        {"tokenizer": "pooled", "transformer": "mhsa", "num_heads": A},
        {"tokenizer": "grid", "transformer": "mlp_mixer", "restore": "broadcast"},
    ],
)
def test_token_module_without_maps(options):
    layer = bottleneck.TokenModule(S, **options)
    x = random_normal(*CLIP)
    with tf.GradientTape() as tape:
        clip, tokens, maps = layer(x)
        loss = tf.reduce_sum(clip * random_normal(*CLIP, seed=1))
    assert clip.shape == CLIP
    assert tokens.shape == (B, T, S, C)
    assert maps is None
    gradients = tape.gradient(loss, layer.trainable_weights)
    assert all(np.abs(g).max() > 0 for g in gradients)
    copy = bottleneck.TokenModule.from_config(layer.get_config())
    copy(x)
    copy.set_weights(layer.get_weights())
    np.testing.assert_allclose(copy(x)[0], clip, atol=1e-6)


def test_broadcasting_adds_the_mean_of_a_frames_tokens_to_its_cells():
    x = random_normal(*CLIP)
    layer = built(bottleneck.TokenModule(S, "pooled", restore="broadcast"), x)
    clip, tokens, _ = layer(x)
    q, k, v = (
        tokens.numpy().reshape(B, T * S, C) @ w.numpy()
        for w in layer.transformer.weights
    )
    y = reference.vector_attention(q, k, v).reshape(B, T, S, C).mean(axis=2)
    np.testing.assert_allclose(clip, x + y[:, :, None, None], atol=1e-4)


def test_unpooling_writes_by_the_tokenizers_maps():
    x = random_normal(*CLIP)
    layer = built(bottleneck.TokenModule(S, "v1.0", restore="unpool"), x)
    clip, tokens, maps = layer(x)
    q, k, v = (
        tokens.numpy().reshape(B, T * S, C) @ w.numpy()
        for w in layer.transformer.weights
    )
    y = reference.vector_attention(q, k, v).reshape(B, T, S, C)
    want = x + np.einsum("bthws,btsc->bthwc", maps.numpy(), y)
    np.testing.assert_allclose(clip, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: bottleneck.Mhsa(4)(tf.zeros([1, N, C])),
            "multiple of num_heads=4, got 6. Change num_heads",
        ),
        (
            lambda: bottleneck.GridAttention("time"),
            r"axes must be one of \('joint', 'temporal', 'spatial'\), got 'time'",
        ),
        (
            lambda: bottleneck.GridAttention("joint", "prior"),
            r"transformer must be one of \('mhsa', 'vector'\), got 'prior'",
        ),
        (
            lambda: bottleneck.TokenModule(S, "v2"),
            r"tokenizer must be one of \('bottleneck', 'v1.0', .*\), got 'v2'",
        ),
        (
            lambda: bottleneck.TokenModule(S, transformer="lstm"),
            r"transformer must be one of \('vector', .*\), got 'lstm'",
        ),
        (
            lambda: bottleneck.TokenModule(S, restore="none"),
            r"restore must be one of \('fuser', .*\), got 'none'",
        ),
        (
            lambda: bottleneck.TokenModule(S, "grid", restore="unpool"),
            "restore='unpool' needs a tokenizer with token maps, got 'grid'",
        ),
        (
            lambda: bottleneck.TokenModule(S, "v1.0", use_projection=True),
            "use_projection needs tokenizer='bottleneck', got 'v1.0'",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
