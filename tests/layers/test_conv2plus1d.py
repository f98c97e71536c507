import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import conv2plus1d

B, T, H, W, C, D, S = 2, 3, 5, 7, 6, 8, 4
SIZES = {"B": B, "T": T, "H": H, "W": W, "C": C, "D": D, "S": S, "H'": H, "W'": W}
HALVED = SIZES | {"H'": 3, "W'": 4}
TOKEN_MODULE = {"token_module": {"num_tokens": S}}
ATTENTION = {"num_heads": 3}


def built(layer, x):
    layer(x)
    randomize(layer)
    return layer


@pytest.mark.parametrize("use_depthwise", [False, True])
def test_temporal_conv_keeps_the_contract(use_depthwise):
    check_layer(conv2plus1d.TemporalConv(5, use_depthwise=use_depthwise), SIZES)


@pytest.mark.parametrize("use_depthwise", [False, True])
def test_temporal_conv_is_a_conv1d_at_every_cell(use_depthwise):
    x = random_normal(B, T, H, W, C)
    layer = built(conv2plus1d.TemporalConv(3, use_depthwise=use_depthwise), x)
    (kernel,) = (w.numpy()[:, 0] for w in layer.conv.weights)  # [K, C, C] or [K, C, 1]
    if use_depthwise:
        kernel = np.stack([np.diag(taps[:, 0]) for taps in kernel])
    want = reference.conv1d_over_time(x, kernel)
    np.testing.assert_allclose(layer(x), want, atol=1e-5)


@pytest.mark.parametrize(
    "options, sizes",
    [
        ({}, SIZES),
        ({"stride": 2}, HALVED),
        ({"stride": 2, "layers": TOKEN_MODULE}, HALVED),
        ({"layers": TOKEN_MODULE, "use_conv2d": False}, SIZES),
        ({"stride": 2, "layers": TOKEN_MODULE, "use_conv2d": False}, HALVED),
        ({"stride": 2, "layers": {"joint": ATTENTION}}, HALVED),
        ({"layers": {"temporal": ATTENTION}}, SIZES),
        ({"layers": {"spatial": ATTENTION}, "use_conv2d": False}, SIZES),
        ({"layers": {"spatial": ATTENTION} | TOKEN_MODULE}, SIZES),
        ({"batch_norm": "sync"}, SIZES),
    ],
)
def test_block_keeps_the_contract(options, sizes):
    check_layer(conv2plus1d.Conv2Plus1DBlock(D, 9, **options), sizes)


def test_block_keeps_the_contract_without_a_shortcut_convolution():
    check_layer(conv2plus1d.Conv2Plus1DBlock(C, 9), SIZES | {"D": C})


def test_block_is_figure_9():
    x = random_normal(B, T, H, W, D)
    block = built(conv2plus1d.Conv2Plus1DBlock(D, 9), x)

    def norm(z, layer):
        weights = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        return reference.batch_norm(z, *(w.numpy() for w in weights))

    frames = x.reshape(B * T, H, W, D)
    y = reference.conv2d(frames, block.expand.kernel.numpy())
    y = reference.relu(norm(y, block.expand_norm))
    y = reference.conv2d(y, block.conv2d.kernel.numpy())
    y = reference.relu(norm(y, block.conv2d_norm)).reshape(B, T, H, W, 9)
    y = reference.conv1d_over_time(y, block.conv1d.conv.kernel.numpy()[:, 0])
    y = reference.relu(norm(y, block.temporal_norm)).reshape(B * T, H, W, 9)
    y = norm(reference.conv2d(y, block.project.kernel.numpy()), block.project_norm)
    want = reference.relu(frames + y).reshape(x.shape)
    got = block(x)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_block_starts_as_its_shortcut():
    x = np.abs(random_normal(B, T, H, W, D))
    block = conv2plus1d.Conv2Plus1DBlock(D, 9)
    np.testing.assert_array_equal(block(x, training=True)[0], x)


def test_block_names_its_learned_tokens_and_token_maps():
    x = random_normal(B, T, H, W, C)
    block = conv2plus1d.Conv2Plus1DBlock(D, 9, stride=2, layers=TOKEN_MODULE)
    shapes = {name: tuple(y.shape) for name, y in block(x)[1].items()}
    assert shapes == {"learned_tokens": (B, T, S, 9), "token_maps": (B, T, 3, 4, S)}
    assert conv2plus1d.Conv2Plus1DBlock(D, 9)(x)[1] == {}


def test_batch_statistics_move_unless_frozen():
    x = tf.constant(random_normal(B, H, W, C))
    for kind in conv2plus1d.BATCH_NORMS:
        norm = conv2plus1d.batch_norm(kind, name="norm")
        norm(x, training=True)
        moved = np.abs(norm.moving_mean.numpy()).max() > 0
        assert moved == (kind != "frozen"), kind
        assert bool(norm.trainable_weights) == (kind != "frozen"), kind


def test_unit_variance_needs_one_step_of_momentum():
    x = tf.constant(random_normal(B, H, W, C) + 5)
    norm = conv2plus1d.batch_norm("local", name="norm")
    norm(x, training=True)
    want = 0.1 * x.numpy().mean(axis=(0, 1, 2))  # torch's momentum 0.1
    np.testing.assert_allclose(norm.moving_mean, want, rtol=1e-4)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: conv2plus1d.Conv2Plus1DBlock(D, 9, use_conv2d=False),
            "use_conv2d=False, so no conv1d in layers",
        ),
        (
            lambda: conv2plus1d.Conv2Plus1DBlock(D, 9, layers={"lstm": {}}),
            r"layers must be of \('conv1d', .*'token_module'\), got \['lstm'\]",
        ),
        (
            lambda: conv2plus1d.Conv2Plus1DBlock(D, 9, batch_norm="none"),
            r"expand_norm: batch_norm must be one of \('local', 'sync', 'frozen'\)",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
