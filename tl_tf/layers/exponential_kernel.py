"""exp(q k) between N queries and N keys of a channel, applied in O(N order).

The derivation, the orders and what was measured are in docs/VECTOR_ATTENTION.md.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tl_tf.layers import chebyshev


@dataclasses.dataclass(frozen=True)
class Order:
    """How finely exp(q k) is interpolated, and how far that is exact.

    Args:
      limit: largest product of a channel's largest |q| and half the range of its keys.
      order: polynomials in q and in k.
      smoothing: of the |q| that scales a query's sums; None for |q| itself, positive
        and negative queries being interpolated apart.
    """

    limit: float
    order: int
    smoothing: float | None = 24.0


# By the numeric type of the sums: outputs and gradients within 1e-6 in float64, within
# 1e-2 in float32, for all distributions of docs/VECTOR_ATTENTION.md.
ORDERS = {
    tf.float64: (Order(6, 19), Order(13, 27), Order(22, 35), Order(102, 71, None)),
    tf.float32: (Order(6, 15), Order(13, 23)),
}


class ExponentialKernel:
    """K_ij = exp(q_i k_j) times a positive factor of each query, of low rank.

    With kappa = (k - middle) / half range and s = q / max|q|, both in [-1, 1], and
    Z = max|q| x half range, K = exp(Z s kappa - g(Z s)) is interpolated at Chebyshev
    nodes in s and kappa; g is |z| or a smoothed |z|, so that the largest of a query's
    K_ij is around 1.

    Shapes: q [B, N, C], k [B, N, C]
    """

    def __init__(self, q: tf.Tensor, k: tf.Tensor, order: Order):
        self._order = order.order
        low, high = (
            f(k, axis=1, keepdims=True) for f in (tf.reduce_min, tf.reduce_max)
        )
        self.half_range = (high - low) / 2  # [B, 1, C]
        self._kappa = tf.math.divide_no_nan(k - (high + low) / 2, self.half_range)
        self.q_max = tf.reduce_max(tf.abs(q), axis=1, keepdims=True)  # [B, 1, C]
        s = tf.math.divide_no_nan(q, self.q_max)

        nodes = tf.constant(chebyshev.nodes(self._order)[:, None], q.dtype)
        self._to_coefficients = tf.constant(
            chebyshev.interpolation(self._order), q.dtype
        )  # [nodes, order]
        largest = self.q_max * self.half_range  # Z [B, 1, C]
        self._is_split = order.smoothing is None
        if self._is_split:
            self._is_positive = s > 0
            self._s = 2 * tf.abs(s) - 1
            z = scale = largest * (nodes + 1) / 2
        else:
            self._s = s
            z = largest * nodes  # [B, nodes, C]
            scale = tf.sqrt(z**2 + order.smoothing**2) - order.smoothing
        self._at_nodes = tf.exp(
            z[:, :, None] * nodes - scale[:, :, None]
        )  # [B, nodes in s, nodes in kappa, C]

    def over_keys(self, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """sum_j K_ij w_j for each weight w, then sum_j K_ij kappa_j w_j.

        Shapes: U weights [B, N, C] -> 2 U tensors [B, N, C]
        """
        moments = chebyshev.moments(self._kappa, weights, self._order + 1)
        moments = tf.concat([moments[:, :-1], chebyshev.times_x(moments)], axis=2)
        at_keys = tf.einsum("ln,bnuc->bluc", self._to_coefficients, moments)
        if self._is_split:  # exp(-z kappa) at a node is exp(z kappa) at the opposite
            at_keys = tf.concat([at_keys, at_keys[:, ::-1]], axis=2)

        at_queries = _sum_of_products(
            tf.split(self._at_nodes, self._order, axis=2),  # of [B, nodes in s, 1, C]
            tf.split(at_keys, self._order, axis=1),  # of [B, 1, 2 U, C]
        )  # [B, nodes in s, 2 U, C]
        coefficients = tf.einsum("mp,bmuc->bpuc", self._to_coefficients, at_queries)
        sums = chebyshev.evaluate(self._s, coefficients)
        if not self._is_split:
            return sums
        half = len(sums) // 2
        return [
            tf.where(self._is_positive, up, down)
            for up, down in zip(sums[:half], sums[half:], strict=True)
        ]

    def over_queries(self, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """sum_i K_ij w_i for the first weight, then sum_i K_ij q_i w_i for each.

        Shapes: U weights [B, N, C] -> U + 1 tensors [B, N, C]
        """
        count = len(weights)
        if self._is_split:
            up = [tf.where(self._is_positive, w, 0) for w in weights]
            weights = up + [w - u for w, u in zip(weights, up, strict=True)]
        moments = chebyshev.moments(self._s, weights, self._order + 1)
        plain, by_s = moments[:, :-1], chebyshev.times_x(moments)  # [B, order, ., C]
        if self._is_split:  # |q| = q_max (1 + s) / 2
            by_s = (plain + by_s) / 2
        by_q = self.q_max[:, None] * by_s
        parts = [plain[:, :, :1], by_q[:, :, :count]]
        if self._is_split:
            parts += [plain[:, :, count : count + 1], -by_q[:, :, count:]]
        both = tf.concat(parts, axis=2)
        at_queries = tf.einsum("mp,bpuc->bmuc", self._to_coefficients, both)

        at_keys = _sum_of_products(
            tf.unstack(self._at_nodes[:, :, :, None], axis=1),  # of [B, nodes, 1, C]
            tf.split(at_queries, self._order, axis=1),  # of [B, 1, U + 1, C]
        )  # [B, nodes in kappa, U + 1, C], twice that when split
        if self._is_split:
            at_keys = at_keys[:, :, : count + 1] + at_keys[:, ::-1, count + 1 :]
        coefficients = tf.einsum("ln,bluc->bnuc", self._to_coefficients, at_keys)
        return chebyshev.evaluate(self._kappa, coefficients)


def _sum_of_products(a: Sequence[tf.Tensor], b: Sequence[tf.Tensor]) -> tf.Tensor:
    """One addition after the other: a reduction is slower under XLA on a CPU."""
    return functools.reduce(tf.add, map(tf.multiply, a, b))


def choose_order(q: tf.Tensor, k: tf.Tensor, orders: Sequence[Order]) -> tf.Tensor:
    """The index of the first order that is exact for q and k; len(orders) if none is.

    Shapes: q [B, N, C], k [B, N, C] -> int32 []
    """
    half_range = (tf.reduce_max(k, axis=1) - tf.reduce_min(k, axis=1)) / 2
    largest = tf.reduce_max(tf.reduce_max(tf.abs(q), axis=1) * half_range)
    limits = np.array([order.limit for order in orders])
    # Counted so that NaN comes out as beyond all limits.
    within = tf.cast(tf.cast(largest, tf.float64) <= limits, tf.int32)
    return len(orders) - tf.reduce_sum(within)
