"""Vector attention (Appendix A): one softmax per query and channel.

With equal channel sizes it is, channel by channel, a scalar attention: the logits are
q_i k_j. All it takes, forward and backward, is sums of exponentials, computed by
`exponential_sums` without a tensor of N x N x C; a faster way to compute those is a
faster attention.
"""

import tensorflow as tf
import tf_keras

IMPLEMENTATIONS = ("auto", "chunked", "naive")

# Rows in flight at once. 8 to 64 run within 20 % of each other; memory grows with it.
CHUNK_SIZE = 8


def vector_attention(
    q: tf.Tensor, k: tf.Tensor, *, v: tf.Tensor, implementation: str = "auto"
) -> tf.Tensor:
    """Attends with one weight per pair of tokens and channel, in float32.

    Shapes: q [B, N, C], k [B, N, C], v [B, N, C] -> [B, N, C]
    Source: Appendix A, equation 3: y_i = sum_j softmax_j(q_i k_j) v_j, element-wise.
    Differs: q, k and v have equal channel sizes, so gamma is the softmax alone.
    Args:
      q: queries.
      k: keys.
      v: values.
      implementation: "naive" builds [B, N, N, C]; "chunked" is as exact and holds
        CHUNK_SIZE / N of that; "auto" is "chunked".
    Raises:
      ValueError: implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"vector_attention: implementation must be one of {IMPLEMENTATIONS}, "
            f"got {implementation!r}."
        )
    tf.debugging.assert_shapes(
        [(x, ("B", "N", "C")) for x in (q, k, v)], message="vector_attention"
    )
    attend = _naive if implementation == "naive" else _chunked
    y = attend(*(tf.cast(x, tf.float32) for x in (q, k, v)))
    return tf.cast(y, q.dtype)


def exponential_sums(
    a: tf.Tensor,
    b: tf.Tensor,
    *,
    shift_a: tf.Tensor,
    shift_b: tf.Tensor,
    weights: tf.Tensor,
) -> tf.Tensor:
    """Sums weights_j exp(a_i b_j - shift_a_i - shift_b_j) over j; G is batch x channel.

    Shapes: a [G, N], b [G, N], shift_a [G, N], shift_b [G, N], weights [G, N, R]
      -> [G, N, R]
    """
    n, r = weights.shape[1:]
    chunk = min(CHUNK_SIZE, n)
    padding = -n % chunk

    def rows_of(x):
        x = tf.pad(x, [[0, 0], [0, padding]])  # padded rows give finite, unused sums
        x = tf.reshape(x, [-1, (n + padding) // chunk, chunk])
        return tf.transpose(x, [1, 0, 2])  # [N / chunk, G, chunk]

    def sums_of(rows):
        a_rows, shift_rows = rows  # [G, chunk]
        exponents = a_rows[:, :, None] * b[:, None]  # [G, chunk, N]
        exponents -= shift_rows[:, :, None] + shift_b[:, None]
        return tf.matmul(tf.exp(exponents), weights)  # [G, chunk, R]

    sums = tf.map_fn(
        sums_of,
        (rows_of(a), rows_of(shift_a)),
        fn_output_signature=tf.TensorSpec([a.shape[0], chunk, r], a.dtype),
        parallel_iterations=1,  # more would hold more chunks at once
    )  # [N / chunk, G, chunk, R]
    sums = tf.transpose(sums, [1, 0, 2, 3])
    return tf.reshape(sums, [-1, n + padding, r])[:, :n]  # [G, N, R]


def _naive(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    weights = tf.nn.softmax(q[:, :, None] * k[:, None], axis=2)  # [B, N, N, C]
    return tf.reduce_sum(weights * v[:, None], axis=2)  # [B, N, C]


def _chunked(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    _, n, c = q.shape

    def channels_first(x):
        return tf.reshape(tf.transpose(x, [0, 2, 1]), [-1, n])  # [G, N], G = B * C

    y = _attend_per_channel(*(channels_first(x) for x in (q, k, v)))  # [G, N]
    return tf.transpose(tf.reshape(y, [-1, c, n]), [0, 2, 1])  # [B, N, C]


@tf.custom_gradient
def _attend_per_channel(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor):
    """Scalar attention for each of G rows; saves O(G N) for the gradient.

    With p_ij the weights, y_i = E_i[v] and dy the incoming gradient:
      dq_i = dy_i (E_i[k v] - E_i[k] y_i)
      dk_j = sum_i p_ij dy_i q_i (v_j - y_i)
      dv_j = sum_i p_ij dy_i
    The forward sums hold all that dq needs; dk and dv take one pass over the transposed
    weights, p_ij = exp(q_i k_j - lse_i).
    """
    # A shift of all keys cancels in the softmax, one of all values only shifts y; when
    # centred, the differences above lose few digits.
    k -= tf.reduce_mean(k, axis=1, keepdims=True)
    v_mean = tf.reduce_mean(v, axis=1, keepdims=True)
    v -= v_mean
    # A query's largest logit is at an extreme of its channel's keys, by its own sign.
    k_extreme = tf.where(
        q > 0,
        tf.reduce_max(k, axis=1, keepdims=True),
        tf.reduce_min(k, axis=1, keepdims=True),
    )  # [G, N]
    max_logit = q * k_extreme
    sums = exponential_sums(
        q,
        k,
        shift_a=max_logit,
        shift_b=tf.zeros_like(k),
        weights=tf.stack([tf.ones_like(v), v, k, k * v], axis=-1),
    )  # [G, N, 4]
    total, *moments = tf.unstack(sums, axis=-1)
    y, k_mean, kv_mean = (moment / total for moment in moments)  # [G, N]
    lse = max_logit + tf.math.log(total)

    def gradient(dy):
        dq = dy * (kv_mean - k_mean * y)
        sums = exponential_sums(
            k,
            q,
            shift_a=tf.zeros_like(k),
            shift_b=lse,
            weights=tf.stack([dy, dy * q, dy * q * y], axis=-1),
        )  # [G, N, 3]
        dv, dyq, dyqy = tf.unstack(sums, axis=-1)
        return dq, v * dyq - dyqy, dv

    return y + v_mean, gradient


class VectorTransformer(tf_keras.layers.Layer):
    """Vector attention among all tokens of a clip, with learned q, k and v.

    Shapes: x [B, N, C] -> [B, N, C]
    Source: Appendix A, equation 3. Table XII's costs leave no room for biases, an
      output projection or a LayerNorm, and the text has none.
    Args:
      implementation: as in `vector_attention`.
    Raises:
      ValueError: implementation is unknown.
    """

    def __init__(self, implementation: str = "auto", **kwargs):
        super().__init__(**kwargs)
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(
                f"{self.name}: implementation must be one of {IMPLEMENTATIONS}, "
                f"got {implementation!r}."
            )
        self.implementation = implementation

    def build(self, input_shape) -> None:
        """Creates the projections, as wide as the input."""
        self.query, self.key, self.value = (
            tf_keras.layers.Dense(input_shape[-1], use_bias=False, name=name)
            for name in ("query", "key", "value")
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the attended tokens."""
        tf.debugging.assert_shapes([(x, ("B", "N", "C"))], message=self.name)
        return vector_attention(
            self.query(x),
            self.key(x),
            v=self.value(x),
            implementation=self.implementation,
        )

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "implementation": self.implementation}
