"""Vector attention (Appendix A): one softmax per query and channel.

With equal channel sizes it is, channel by channel, a scalar attention: the logits are
q_i k_j, and an output is a smooth function of its query alone.  `fast` makes use of it:
docs/VECTOR_ATTENTION.md has the method and its measurements.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import tensorflow as tf
import tf_keras
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from tl_tf.layers import exponential_kernel

IMPLEMENTATIONS = ("auto", "fast", "chunked", "naive")

# Rows in flight at once. 8 to 64 run within 20 % of each other; memory grows with it.
CHUNK_SIZE = 8

# From how many tokens on `auto` is `fast`.  There it is level with chunks that XLA
# compiles if the logits need order 35, and ahead for smaller logits or without XLA.
MIN_FAST_TOKENS = 128


def vector_attention(
    q: tf.Tensor, k: tf.Tensor, *, v: tf.Tensor, implementation: str = "auto"
) -> tf.Tensor:
    """Attends with one weight per pair of tokens and channel, in float32 or better.

    Shapes: q [B, N, C], k [B, N, C], v [B, N, C] -> [B, N, C]
    Source: Appendix A, equation 3: y_i = sum_j softmax_j(q_i k_j) v_j, element-wise.
    Differs: q, k and v have equal channel sizes, so gamma is the softmax alone.
    Args:
      q: queries.
      k: keys.
      v: values.
      implementation: "naive" builds [B, N, N, C]; "chunked" is as exact and holds
        CHUNK_SIZE / N of that; "fast" needs O(N) time and memory, is within 1e-5 of
        the exact result, outputs and gradients, for float32 and as close as bfloat16
        tells for bfloat16, and is "chunked" where the logits are too large for that;
        "auto" is "fast" from MIN_FAST_TOKENS tokens on, but for float32 "chunked" on a
        TPU, which has no float64.
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
    if implementation == "auto":
        needs_float64 = q.dtype == tf.float32
        is_fast = q.shape[1] >= MIN_FAST_TOKENS and not (
            needs_float64 and tf.config.list_logical_devices("TPU")
        )
        implementation = "fast" if is_fast else "chunked"
    attend = {"naive": _naive, "chunked": _chunked, "fast": _fast}[implementation]
    # What float32 tells needs float64 between; what bfloat16 tells, float32.
    dtype = tf.float64 if q.dtype == tf.float32 else tf.float32
    inputs = [tf.cast(x, tf.float32) for x in (q, k, v)]
    y = attend(*inputs, dtype=dtype) if implementation == "fast" else attend(*inputs)
    return tf.cast(y, q.dtype)


def _naive(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    weights = tf.nn.softmax(q[:, :, None] * k[:, None], axis=2)  # [B, N, N, C]
    return tf.reduce_sum(weights * v[:, None], axis=2)  # [B, N, C]


def _chunked(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    def attend(q, k, v):
        k, v, v_mean = _centre(k, v)
        y, slope, log_sums = _attend_in_chunks(q, k, v)
        return y + v_mean, (slope, k, v, y, log_sums)

    def gradients(q, slope, *saved_and_dy):
        return saved_and_dy[-1] * slope, *_gradients_in_chunks(q, *saved_and_dy)

    return _with_gradient(attend, gradients)(q, k, v)


def _fast(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *, dtype: tf.DType) -> tf.Tensor:
    return _with_gradient(
        functools.partial(_attend_fast, dtype=dtype),
        functools.partial(_gradients_fast, dtype=dtype),
    )(q, k, v)


def _attend_fast(q, k, v, *, dtype):
    q, k, v, v_mean, choice = _prepare_fast(q, k, v, dtype=dtype)
    y, slope, sums = _switch(
        choice, _attend_by_order, _attend_in_chunks, (q, k, v), dtype
    )
    return y + v_mean, (slope, k, v, y, sums, choice)


def _gradients_fast(q, slope, k, v, y, sums, choice, dy, *, dtype):
    dq, *tensors = _hold(q, slope, k, v, y, sums, dy)
    return dq, *_switch(
        choice, _gradients_by_order, _gradients_in_chunks, tensors, dtype
    )


# XLA's even where the step around them is not: their loops are over registers.
@tf.function(jit_compile=True, autograph=False)
def _prepare_fast(q, k, v, *, dtype):
    k, v, v_mean = _centre(k, v)
    choice = exponential_kernel.choose_order(q, k, exponential_kernel.ORDERS[dtype])
    return *_barrier(q, k, v), v_mean, choice


@tf.function(jit_compile=True, autograph=False)
def _hold(q, slope, k, v, y, sums, dy):
    return dy * slope, *_barrier(q, k, v, y, sums, dy)


def _barrier(*tensors):
    # While tracing, tf2xla looks for constants among what a conditional takes, by
    # interpreting on the host all that it was made of: minutes, unless a barrier ends
    # the search.
    return gen_xla_ops.xla_optimization_barrier(list(tensors))


def _switch(choice, by_order, in_chunks, tensors, dtype):
    """Each branch is a program of its own, compiled when it is first taken."""
    orders = exponential_kernel.ORDERS[dtype]
    branches = [_compiled(by_order, order=order, dtype=dtype) for order in orders]
    branches.append(_compiled(in_chunks))
    return tf.switch_case(choice, [functools.partial(b, *tensors) for b in branches])


@functools.cache
def _compiled(function: Callable, **arguments) -> Callable:
    return tf.function(
        functools.partial(function, **arguments), jit_compile=True, autograph=False
    )


def _with_gradient(attend: Callable, gradients: Callable) -> Callable:
    """Scalar attention for each channel; saves O(N) for the gradient.

    With p_ij the weights, E_i the mean under them, y_i = E_i[v], and dy the incoming
    gradient:
      dq_i = dy_i E_i[(k - E_i[k]) (v - y_i)], of which the forward pass has all but dy
      dk_j = sum_i p_ij dy_i q_i (v_j - y_i)
      dv_j = sum_i p_ij dy_i

    Args:
      attend: q, k, v [B, N, C] -> y, and what `gradients` needs to know.
      gradients: q, that, dy [B, N, C] -> dq, dk, dv.
    """

    @tf.custom_gradient
    def attention(q, k, v):
        q, k, v = (tf.stop_gradient(x) for x in (q, k, v))  # nothing here is recorded
        y, saved = attend(q, k, v)
        return y, lambda dy: gradients(q, *saved, dy)

    return attention


def _centre(k: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """-> k and v less their means, and v's mean.

    A shift of all keys cancels in the softmax, one of all values only shifts y: when
    centred, differences lose few digits.
    """
    k_mean, v_mean = (tf.reduce_mean(x, axis=1, keepdims=True) for x in (k, v))
    return k - k_mean, v - v_mean, v_mean


def _attend_in_chunks(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """-> y, dq / dy and the logarithm of the sum of the exponentials, [B, N, C]."""
    # A query's largest logit is at an extreme of its channel's keys, by its own sign.
    high, low = (f(k, axis=1, keepdims=True) for f in (tf.reduce_max, tf.reduce_min))
    max_logit = q * tf.where(q > 0, high, low)
    k, v = _channels_first(k), _channels_first(v)  # [G, N]

    def rows(row_q, row_max):  # [G, chunk]
        p = tf.exp(
            row_q[:, :, None] * k[:, None] - row_max[:, :, None]
        )  # [G, chunk, N]
        total = tf.reduce_sum(p, axis=2)
        y, k_mean = (tf.linalg.matvec(p, x) / total for x in (v, k))
        apart = p * (k[:, None] - k_mean[:, :, None]) * (v[:, None] - y[:, :, None])
        return y, tf.reduce_sum(apart, axis=2) / total, row_max + tf.math.log(total)

    return _map_chunks(rows, [q, max_logit], num_outputs=3)


def _gradients_in_chunks(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    y: tf.Tensor,
    log_sums: tf.Tensor,
    dy: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """-> dk, dv [B, N, C]."""
    q, y, log_sums, dy = (_channels_first(x) for x in (q, y, log_sums, dy))  # [G, N]

    def rows(row_k, row_v):  # [G, chunk]
        p = tf.exp(row_k[:, :, None] * q[:, None] - log_sums[:, None])  # [G, chunk, N]
        dk = p * (dy * q)[:, None] * (row_v[:, :, None] - y[:, None])
        return tf.reduce_sum(dk, axis=2), tf.linalg.matvec(p, dy)

    return _map_chunks(rows, [k, v], num_outputs=2)


def _channels_first(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.transpose(x, [0, 2, 1]), [-1, x.shape[1]])  # [G, N], G = B C


def _map_chunks(
    function: Callable, tensors: list[tf.Tensor], *, num_outputs: int
) -> tuple[tf.Tensor, ...]:
    """Applies function to CHUNK_SIZE tokens of [B, N, C] at a time, as [G, chunk]."""
    _, n, c = tensors[0].shape
    chunk = min(CHUNK_SIZE, n)
    padding = -n % chunk

    def chunks_of(x):
        x = tf.pad(_channels_first(x), [[0, 0], [0, padding]])  # finite, and cut off
        x = tf.reshape(x, [-1, (n + padding) // chunk, chunk])
        return tf.transpose(x, [1, 0, 2])  # [N / chunk, G, chunk]

    chunks = [chunks_of(x) for x in tensors]
    spec = tf.TensorSpec(chunks[0].shape[1:], chunks[0].dtype)
    outputs = tf.map_fn(
        lambda chunk: function(*chunk),
        chunks,
        fn_output_signature=(spec,) * num_outputs,
        parallel_iterations=1,  # more would hold more chunks at once
    )

    def tokens_of(x):  # [N / chunk, G, chunk]
        x = tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, c, n + padding])
        return tf.transpose(x[:, :, :n], [0, 2, 1])  # [B, N, C]

    return tuple(tokens_of(x) for x in outputs)


def _attend_by_order(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    *,
    order: exponential_kernel.Order,
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """-> y, dq / dy and the kernel's sum over keys, [B, N, C]."""
    q, k, v = (tf.cast(x, dtype) for x in (q, k, v))
    kernel = exponential_kernel.ExponentialKernel(q, k, order)
    total, sum_v, sum_k, sum_kv = kernel.over_keys([tf.ones_like(v), v])
    y = sum_v / total
    slope = kernel.half_range * (sum_kv - sum_k * y) / total
    return tuple(tf.cast(x, tf.float32) for x in (y, slope, total))


def _gradients_by_order(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    y: tf.Tensor,
    total: tf.Tensor,
    dy: tf.Tensor,
    *,
    order: exponential_kernel.Order,
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor]:
    """-> dk, dv [B, N, C]."""
    q, k, v, y, total, dy = (tf.cast(x, dtype) for x in (q, k, v, y, total, dy))
    kernel = exponential_kernel.ExponentialKernel(q, k, order)
    weights = dy / total
    dv, sum_q, sum_qy = kernel.over_queries([weights, weights * y])
    return tf.cast(v * sum_q - sum_qy, tf.float32), tf.cast(dv, tf.float32)


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


@contextlib.contextmanager
def implemented(model: tf_keras.Model, implementation: str) -> Iterator[None]:
    """Has a model's vector attention computed in another way, in graphs traced within.

    Args:
      model: any.
      implementation: as in `vector_attention`.
    """
    layers = [
        layer for layer in model.submodules if isinstance(layer, VectorTransformer)
    ]
    before = [layer.implementation for layer in layers]
    for layer in layers:
        layer.implementation = implementation
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.implementation = was
