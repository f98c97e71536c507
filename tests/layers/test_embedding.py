import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import embedding

B, Y, X, C, L = 2, 11, 15, 6, 5
PATCH = (3, 4)
H, W = 3, 3  # 11 // 3 and 15 // 4: two rows and three columns are cut off
SIZES = {"B": B, "Y": Y, "X": X, "H": H, "W": W, "C": C, "L": L}


def test_patch_embed_keeps_the_contract():
    check_layer(embedding.PatchEmbed(C, PATCH), SIZES)


def test_tubelet_embed_keeps_the_contract():
    check_layer(embedding.TubeletEmbed(C, (2, *PATCH)), SIZES | {"F": 9, "T": 4})


def test_frame_embed_keeps_the_contract():
    check_layer(embedding.FrameEmbed(C, PATCH, 4), SIZES | {"F": 9, "T": 4})


def test_conv_stem_keeps_the_contract():
    layer = embedding.ConvStem([5, C], [1, 2])
    check_layer(layer, SIZES | {"Y": 10, "X": 14, "H": 5, "W": 7})


def test_position_embed_keeps_the_contract():
    check_layer(embedding.PositionEmbed(), SIZES)


def test_a_token_is_a_linear_map_of_its_patch():
    x = random_normal(B, Y, X, 3)
    layer = embedding.PatchEmbed(C, PATCH)
    layer(x)
    randomize(layer)
    kernel, bias = (w.numpy() for w in layer.projection.weights)
    got = layer(x).numpy()
    for row in range(H):
        for column in range(W):
            patch = x[:, 3 * row : 3 * row + 3, 4 * column : 4 * column + 4]
            want = reference.dense(patch.reshape(B, -1), kernel.reshape(-1, C), bias)
            np.testing.assert_allclose(got[:, row, column], want, rtol=0, atol=1e-5)


def test_a_token_is_a_linear_map_of_its_tubelet():
    x = random_normal(B, 9, Y, X, 3)
    layer = embedding.TubeletEmbed(C, (2, *PATCH))
    layer(x)
    randomize(layer)
    kernel, bias = (w.numpy() for w in layer.projection.weights)
    assert kernel.shape == (2, *PATCH, 3, C)
    got = layer(x).numpy()  # the ninth frame is cut off
    for t, row, column in np.ndindex(4, H, W):
        tubelet = x[:, 2 * t : 2 * t + 2, 3 * row : 3 * row + 3]
        tubelet = tubelet[:, :, :, 4 * column : 4 * column + 4]
        want = reference.dense(tubelet.reshape(B, -1), kernel.reshape(-1, C), bias)
        np.testing.assert_allclose(got[:, t, row, column], want, rtol=0, atol=1e-5)


def test_sampled_frames_are_embedded_one_by_one():
    x = random_normal(B, 9, Y, X, 3)
    layer = embedding.FrameEmbed(C, PATCH, 2)
    got = layer(x)
    for t, frame in enumerate([3, 6]):
        want = layer.patches(x[:, frame])
        np.testing.assert_allclose(got[:, t], want, rtol=0, atol=1e-6)


# Written by hand.
@pytest.mark.parametrize(
    "num_frames, count, want",
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (9, 1, [4]),  # 4.5, to the even one
        (8, 2, [3, 5]),  # 2.67, 5.33
        (32, 7, [4, 8, 12, 16, 20, 24, 28]),
        (6, 5, [1, 2, 3, 4, 5]),
        (7, 3, [2, 4, 5]),  # 1.75, 3.5, 5.25
        (1, 1, [0]),
    ],
)
def test_frames_are_sampled_uniformly(num_frames, count, want):
    assert embedding.uniform_frames(num_frames, count) == want


def test_conv_stem_is_convolution_norm_gelu():
    x = random_normal(B, 5, 7, 3)
    layer = embedding.ConvStem([4, C], [1, 1])
    layer(x)
    randomize(layer)
    want = x
    for conv, norm in zip(layer.convs, layer.norms, strict=True):
        want = reference.conv2d(want, conv.kernel.numpy(), conv.bias.numpy())
        want = reference.layer_norm(want, norm.gamma.numpy(), norm.beta.numpy())
        want = reference.gelu(want)
    np.testing.assert_allclose(layer(x), want, rtol=0, atol=1e-4)


def test_every_place_has_a_vector_of_its_own():
    x = random_normal(B, L, C)
    layer = embedding.PositionEmbed()
    layer(x)
    randomize(layer)
    want = x + layer.position_embedding.numpy()
    np.testing.assert_allclose(layer(x), want, rtol=1e-6)
    assert layer.position_embedding.shape == (1, L, C)


def test_position_embed_needs_a_static_length():
    with pytest.raises(ValueError, match="position: wanted a static L, got"):
        embedding.PositionEmbed(name="position").build(tf.TensorShape([B, None, C]))


# Written by hand: corners stay, what lies between is linear.
@pytest.mark.parametrize(
    "grid, to_grid, want",
    [
        ([[0, 6]], (1, 4), [[0, 2, 4, 6]]),
        ([[0], [6]], (4, 1), [[0], [2], [4], [6]]),
        ([[0, 2], [4, 10]], (3, 3), [[0, 1, 2], [2, 4, 6], [4, 7, 10]]),
        ([[0, 2], [4, 10]], (2, 3), [[0, 1, 2], [4, 7, 10]]),
        ([[0, 1, 2], [2, 4, 6], [4, 7, 10]], (2, 2), [[0, 2], [4, 10]]),
        ([[1, 2, 3], [4, 5, 7]], (2, 3), [[1, 2, 3], [4, 5, 7]]),
        ([[1, 2, 5]], (1, 1), [[1]]),
        ([[3]], (2, 3), [[3, 3, 3], [3, 3, 3]]),
    ],
)
@pytest.mark.parametrize("num_prefix", [0, 2])
def test_a_grid_is_stretched_corner_to_corner(grid, to_grid, want, num_prefix):
    grid, want = np.array(grid, np.float32), np.array(want, np.float32)
    prefix = np.array([-7, -9], np.float32)[:num_prefix]
    table = np.concatenate([prefix, grid.ravel()])[None, :, None]
    table = np.concatenate([table, 10 * table], axis=2)  # two channels
    got = embedding.resize_position_embedding(
        table, from_grid=grid.shape, to_grid=to_grid, num_prefix=num_prefix
    )
    assert got.dtype == np.float32
    expected = np.concatenate([prefix, want.ravel()])
    np.testing.assert_allclose(got[0, :, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(got[0, :, 1], 10 * expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 6, C), (7, C), (2, 7, C)])
def test_a_table_of_another_grid_is_refused(shape):
    with pytest.raises(
        ValueError, match=r"wanted \[1, 7, C\] for a grid of 2x3 and 1 "
    ):
        embedding.resize_position_embedding(
            np.zeros(shape),
            from_grid=(2, 3),
            to_grid=(3, 3),
            num_prefix=1,
        )
