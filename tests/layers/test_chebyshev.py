import numpy as np
import pytest
import tensorflow as tf

from tests.contract import random_normal
from tl_tf.layers import chebyshev

B, N, C = 2, 37, 5


def points(n=N, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, [B, n, C])


def polynomials(x, order):
    """T_n(x) = cos(n arccos x).  -> [order, ...]"""
    return np.cos(np.arange(order).reshape(-1, *[1] * x.ndim) * np.arccos(x))


@pytest.mark.parametrize("order", [1, 2, 3, 7, 20, 36, 72])
@pytest.mark.parametrize("block_size", [1 << 18, 60])  # in one block, or in several
def test_moments_are_sums_of_polynomials(order, block_size, monkeypatch):
    monkeypatch.setattr(chebyshev, "BLOCK_SIZE", block_size)
    x = points()
    weights = [random_normal(B, N, C, seed=s).astype(np.float64) for s in range(3)]
    got = chebyshev.moments(
        tf.constant(x), [tf.constant(w) for w in weights], order
    )  # [B, order, 3, C]
    want = np.einsum("rbnc,ubnc->bruc", polynomials(x, order), np.stack(weights))
    np.testing.assert_allclose(got, want, atol=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 7, 20, 36, 72])
def test_evaluate_is_the_series(order):
    x = points()
    coefficients = random_normal(B, order, 3, C).astype(np.float64)
    got = chebyshev.evaluate(tf.constant(x), tf.constant(coefficients))
    want = np.einsum("rbnc,bruc->ubnc", polynomials(x, order), coefficients)
    np.testing.assert_allclose(np.stack(got), want, atol=1e-12)


def test_times_x_multiplies_every_point():
    x, order = points(), 6
    weight = random_normal(B, N, C, seed=1).astype(np.float64)
    moments = chebyshev.moments(tf.constant(x), [tf.constant(weight)], order + 1)
    got = chebyshev.times_x(moments)
    want = np.einsum("rbnc,bnc->brc", polynomials(x, order), x * weight)
    np.testing.assert_allclose(got[:, :, 0], want, atol=1e-12)


def test_interpolation_gives_the_coefficients_of_a_polynomial():
    # 4 x^3 = 3 T_1 + T_3
    coefficients = (4 * chebyshev.nodes(6) ** 3) @ chebyshev.interpolation(6)
    np.testing.assert_allclose(coefficients, [0, 3, 0, 1, 0, 0], atol=1e-14)
