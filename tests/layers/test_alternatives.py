import numpy as np
import pytest

from tests import reference
from tests.contract import check_layer, random_normal, randomize
from tl_tf.layers import alternatives

B, H, W, C, S, N = 2, 4, 9, 6, 6, 11
GRID = (2, 3)
HEADS, HIDDEN = 3, 7
SIZES = {"B": B, "H": H, "W": W, "C": C, "S": S, "N": N}


def weights_of(layer):
    return layer.kernel.numpy(), layer.bias.numpy()


def norm(layer, x):
    return reference.layer_norm(x, layer.gamma.numpy(), layer.beta.numpy())


def test_a_window_becomes_its_mean():
    x = random_normal(B, H, W, C)
    layer = alternatives.GridPool(GRID)
    got = layer(x).numpy()
    assert got.shape == (B, S, C)
    assert layer.from_config(layer.get_config()).grid == GRID
    for row in range(2):
        for column in range(3):
            window = x[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            want = window.mean(axis=(1, 2))
            np.testing.assert_allclose(got[:, 3 * row + column], want, atol=1e-6)


def test_a_grid_that_does_not_divide_is_refused():
    layer = alternatives.GridPool((2, 4), name="pool")
    with pytest.raises(
        ValueError, match="pool: wanted a grid that divides 4x9, got 2x4"
    ):
        layer(random_normal(B, H, W, C))


def test_unpooling_writes_by_the_maps_that_pooled():
    y, maps = random_normal(B, S, C), random_normal(B, N, S, seed=1)
    got = alternatives.unpool(y, maps)
    want = np.zeros([B, N, C])
    for clip, cell, token in np.ndindex(B, N, S):
        want[clip, cell] += maps[clip, cell, token] * y[clip, token]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_reprojection_keeps_the_contract():
    layer = alternatives.Reprojection(HEADS, HIDDEN)
    check_layer(layer, SIZES, zero_gradients=("key/bias",))


def test_the_grid_attends_to_the_tokens():
    y, x = random_normal(B, S, C), random_normal(B, N, C, seed=1)
    layer = alternatives.Reprojection(HEADS, HIDDEN)
    layer(y, x)
    randomize(layer)
    projections = (
        getattr(layer.attention, n) for n in ("query", "key", "value", "out")
    )
    attended = reference.attend(
        norm(layer.grid_norm, x),
        norm(layer.token_norm, y),
        *map(weights_of, projections),
    )
    z = x + attended
    hidden, out = weights_of(layer.mlp.hidden), weights_of(layer.mlp.out)
    want = z + reference.mlp(norm(layer.mlp_norm, z), hidden, out)
    np.testing.assert_allclose(
        layer(y, x), want, rtol=0, atol=1e-5 * np.abs(want).max()
    )
