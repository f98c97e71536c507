"""Chebyshev polynomials on [-1, 1]: interpolation, and sums over many points.

Everything is static products and additions with channels last, which XLA turns into a
few loops over registers: no N x order tensor of polynomials is kept.
"""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Rows that `moments` sums in one go: the first of these that leaves MIN_GROUPS groups.
# 16 are too many for XLA on a CPU to make vector instructions of; over fewer than 33
# groups its sum is one slow loop instead of two.
UNROLLED_ROWS = (8, 4, 2)
MIN_GROUPS = 33

# Elements of a block of points in `moments`.  Smaller ones leave a core idle.
BLOCK_SIZE = 1 << 18


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
    coefficients = tf.einsum("nas,bnuc->bsauc", change, coefficients)
    small = _polynomials(x[:, :, None], num_factors + 1)  # T_0 ... T_m, [B, N, 1, C]
    large = _polynomials(small.pop(), num_steps)  # T_0, T_m, T_2m, ...
    outer = []
    for t_large, of_step in zip(large, tf.unstack(coefficients, axis=1), strict=True):
        of_factors = tf.split(of_step, num_factors, axis=1)  # of [B, 1, U, C]
        inner = map(tf.multiply, small, of_factors)  # of [B, N, U, C]
        outer.append(t_large * functools.reduce(tf.add, inner))
    return tf.unstack(functools.reduce(tf.add, outer), num=num_series, axis=2)


def moments(x: tf.Tensor, weights: Sequence[tf.Tensor], order: int) -> tf.Tensor:
    """Sums of T_n(x) times each of U weights, over N points, for every n below `order`.

    The basis that is summed is T_a(x) T_{b m}(x), a < m, in blocks of points: m + U
    order / m arrays and one product of them, instead of U order; a constant matrix
    makes the moments of it.

    Shapes: x [B, N, C], U weights [B, N, C] -> [B, order, U, C]
    """
    _, n, c = x.shape
    num_factors, num_steps = _factors(order, arrays_per_step=len(weights))
    num_blocks = -(-n * c // BLOCK_SIZE)
    fitting = (u for u in UNROLLED_ROWS if n >= num_blocks * u * MIN_GROUPS)
    unrolled = next(fitting, UNROLLED_ROWS[0])
    rows = -(-n // (num_blocks * unrolled)) * unrolled
    num_blocks = -(-n // rows)

    def blocks_of(y):  # padded points have no weight
        y = tf.pad(y, [[0, 0], [0, num_blocks * rows - n], [0, 0]])
        return tf.reshape(y, [-1, rows // unrolled, unrolled, c])

    def block_sums(block):
        x, *weights = block  # [rows / unrolled, unrolled, C]
        small = _polynomials(x, num_factors + 1)  # T_0 ... T_m
        large = _polynomials(small.pop(), num_steps)  # T_0, T_m, T_2m, ...
        small = tf.stack(small, axis=1)
        weighted = tf.stack([t * w for w in weights for t in large], axis=1)
        products = (
            small[:, :, None, row] * weighted[:, None, :, row]
            for row in range(unrolled)
        )  # [rows / unrolled, m, U steps, C]
        return tf.reduce_sum(functools.reduce(tf.add, products), axis=0)

    sums = tf.map_fn(
        block_sums,
        [blocks_of(y) for y in (x, *weights)],
        fn_output_signature=tf.TensorSpec(
            [num_factors, len(weights) * num_steps, c], x.dtype
        ),
        parallel_iterations=1,
    )
    shape = [-1, num_blocks, num_factors, len(weights), num_steps, c]
    sums = tf.reduce_sum(tf.reshape(sums, shape), axis=1)  # [B, m, U, steps, C]
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
