import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import tokenizers

B, H, W, C, S = 2, 5, 7, 3, 6
SIZES = {"B": B, "H": H, "W": W, "C": C, "S": S}


@pytest.mark.parametrize(
    "layer",
    [
        tokenizers.DenseTokens(S, (2, 3)),
        tokenizers.GridTokens(S),
        tokenizers.PooledTokens(S),
    ],
)
def test_tokenizers_without_maps_keep_the_contract(layer):
    check_layer(layer, SIZES)


def test_five_cells_in_two_share_the_middle_one():
    want = np.array([[2, 2, 1, 0, 0], [0, 0, 1, 2, 2]]) / 5
    np.testing.assert_allclose(tokenizers.area_weights(5, 2), want)
    want = np.array([[1, 0], [1, 0], [0.5, 0.5], [0, 1], [0, 1]])
    np.testing.assert_allclose(tokenizers.area_weights(2, 5), want)


@pytest.mark.parametrize("num_tokens, rows", [(1, 1), (2, 1), (4, 2), (8, 2), (12, 3)])
def test_a_grid_is_wider_than_high(num_tokens, rows):
    assert tokenizers.GridTokens(num_tokens).rows == rows


def test_grid_tokens_are_means_of_rectangles():
    x = random_normal(B, 4, 9, C)
    tokens, maps = tokenizers.GridTokens(S)(x)  # 2 rows, 3 columns
    assert maps is None
    np.testing.assert_allclose(tokens[:, 0], x[:, :2, :3].mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_allclose(tokens[:, 4], x[:, 2:, 3:6].mean(axis=(1, 2)), atol=1e-6)


def test_one_grid_token_is_the_mean_of_the_frame():
    x = random_normal(B, H, W, C)
    (token,) = tf.unstack(tokenizers.GridTokens(1)(x)[0], axis=1)
    np.testing.assert_allclose(token, x.mean(axis=(1, 2)), atol=1e-6)


def test_dense_tokens_see_every_cell_and_channel():
    x = random_normal(B, H, W, C)
    layer = tokenizers.DenseTokens(S, (H, W))
    layer(x)
    randomize(layer)
    kernel, bias = (w.numpy() for w in layer.dense.weights)
    want = reference.dense(x.reshape(B, -1), kernel, bias).reshape(B, S, C)
    np.testing.assert_allclose(layer(x)[0], want, atol=1e-5)
    constant = np.broadcast_to(x[:, :1, :1], x.shape)
    larger = np.broadcast_to(x[:, :1, :1], (B, 8, 8, C))
    np.testing.assert_allclose(layer(larger)[0], layer(constant)[0], atol=1e-5)


def test_pooled_tokens_are_an_mlp_of_the_mean():
    x = random_normal(B, H, W, C)
    layer = tokenizers.PooledTokens(S)
    layer(x)
    randomize(layer)
    pairs = [[w.numpy() for w in d.weights] for d in (layer.hidden, layer.out)]
    want = reference.mlp(x.mean(axis=(1, 2)), *pairs).reshape(B, S, C)
    np.testing.assert_allclose(layer(x)[0], want, atol=1e-5)


@pytest.mark.parametrize("kind", tokenizers.TOKENIZERS)
def test_a_frame_needs_a_token(kind):
    with pytest.raises(ValueError, match="num_tokens must be >= 1, got 0"):
        tokenizers.TOKENIZERS[kind](0)
