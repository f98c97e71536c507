"""Chebyshev polynomials on [-1, 1]: interpolation, and sums over many points.

Everything is static products and additions with channels last, which XLA turns into a
few loops over registers: no N x order tensor of polynomials is kept.
"""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Points that `moments` sums in one go, as additions that XLA on a CPU makes vector
# instructions of: it does not of a reduction, nor of 16 additions.
UNROLLED_POINTS = 8


def nodes(order: int) -> np.ndarray:
    """The Chebyshev nodes of the first kind, from 1 to -1.  -> float64 [order]"""
    return np.cos((np.arange(order) + 0.5) * np.pi / order)


def interpolation(order: int) -> np.ndarray:
    """Turns values at the nodes into coefficients: c_n = sum_l matrix[l, n] f(x_l).

    Its transpose turns sums of T_n over points into weights at the nodes that give the
    same sum for every polynomial below `order`.  -> float64 [nodes, order]
    """
    angles = np.outer((np.arange(order) + 0.5) * np.pi / order, np.arange(order))
    matrix = 2 / order * np.cos(angles)
    matrix[:, 0] /= 2
    return matrix


def times_x(moments: tf.Tensor) -> tf.Tensor:
    """Sums of x T_n(x) w from those of T_n(x) w, by x T_n = (T_{n+1} + T_{|n-1|}) / 2.

    Shapes: moments [B, R + 1, U, C] -> [B, R, U, C]
    """
    below = tf.concat([moments[:, 1:2], moments[:, :-2]], axis=1)  # [B, R, U, C]
    return (moments[:, 1:] + below) / 2


def evaluate(x: tf.Tensor, coefficients: tf.Tensor) -> list[tf.Tensor]:
    """Values of U series at every point: sum_n coefficients[n] T_n(x).

    Shapes: x [B, N, C], coefficients [B, R, U, C] -> U tensors [B, N, C]
    """
    order, num_series = coefficients.shape[1:3]
    num_factors, num_steps = _factors(order, arrays_per_step=1)
    change = tf.constant(_from_products(order, num_steps), x.dtype)
    coefficients = tf.einsum("nas,bnuc->basuc", change, coefficients)
    small = _polynomials(x, num_factors + 1)  # T_0 ... T_m
    large = _polynomials(small.pop(), num_steps)  # T_0, T_m, T_2m, ...
    outer = []
    for step, t_large in enumerate(large):
        inner = (
            t[:, :, None] * coefficients[:, None, factor, step]
            for factor, t in enumerate(small)
        )  # [B, N, U, C]
        outer.append(t_large[:, :, None] * functools.reduce(tf.add, inner))
    return tf.unstack(functools.reduce(tf.add, outer), num=num_series, axis=2)


def moments(x: tf.Tensor, weights: Sequence[tf.Tensor], order: int) -> tf.Tensor:
    """Sums of T_n(x) times each of U weights, over N points, for every n below `order`.

    The basis that is summed is T_a(x) T_{b m}(x), a < m, a few points after the other:
    m + U order / m arrays and one product of them, instead of U order; a constant
    matrix makes the moments of it.

    Shapes: x [B, N, C], U weights [B, N, C] -> [B, order, U, C]
    """
    _, n, c = x.shape
    num_factors, num_steps = _factors(order, arrays_per_step=len(weights))

    def blocks_of(y):  # padded points have no weight
        y = tf.pad(y, [[0, 0], [0, -n % UNROLLED_POINTS], [0, 0]])
        y = tf.reshape(y, [-1, -(-n // UNROLLED_POINTS), UNROLLED_POINTS, c])
        return tf.transpose(y, [1, 0, 2, 3])

    def add_block(sums, block):
        x, *weights = block  # [B, 8, C]
        small = _polynomials(x, num_factors + 1)  # T_0 ... T_m
        large = _polynomials(small.pop(), num_steps)  # T_0, T_m, T_2m, ...
        small = tf.stack(small, axis=1)
        weighted = tf.stack([t * w for w in weights for t in large], axis=1)
        products = (
            small[:, :, None, point] * weighted[:, None, :, point]
            for point in range(UNROLLED_POINTS)
        )  # [B, m, U steps, C]
        return sums + functools.reduce(tf.add, products)

    zeros = tf.zeros_like(x[:, 0])[:, None, None]  # [B, 1, 1, C]
    sums = tf.foldl(
        add_block,
        [blocks_of(y) for y in (x, *weights)],
        tf.tile(zeros, [1, num_factors, len(weights) * num_steps, 1]),
        parallel_iterations=1,
    )
    sums = tf.reshape(sums, [-1, num_factors, len(weights), num_steps, c])
    change = tf.constant(_from_products(order, num_steps), x.dtype)
    return tf.einsum("nas,bausc->bnuc", change, sums)


def _polynomials(x: tf.Tensor, order: int) -> list[tf.Tensor]:
    """T_0(x) ... T_{order - 1}(x), by their recurrence."""
    polynomials = [tf.ones_like(x), x]
    double = 2 * x
    while len(polynomials) < order:
        polynomials.append(double * polynomials[-1] - polynomials[-2])
    return polynomials[:order]


def _factors(order: int, *, arrays_per_step: int) -> tuple[int, int]:
    """m and the number of steps, m x steps >= order, with the fewest arrays."""
    num_steps = max(1, round((order / arrays_per_step) ** 0.5))
    return -(-order // num_steps), num_steps


def _from_products(order: int, num_steps: int) -> np.ndarray:
    """T_n in the basis T_a T_{b m}, by T_{a + bm} = 2 T_a T_{bm} - T_{bm - a}.

    -> float64 [order, m, steps]
    """
    num_factors = -(-order // num_steps)
    change = np.zeros([num_factors * num_steps, num_factors, num_steps])
    for n in range(len(change)):
        step, factor = divmod(n, num_factors)
        change[n, factor, step] = 1.0
        if factor and step:
            change[n] = 2 * change[n] - change[n - 2 * factor]
    return change[:order]
