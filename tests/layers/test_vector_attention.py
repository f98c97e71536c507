import time

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.contract import check_layer, random_normal
from tl_tf.layers import exponential_kernel, vector_attention

B, N, C = 2, 19, 5  # N is no multiple of CHUNK_SIZE
SIZES = {"B": B, "N": N, "C": C}


def inputs(b=B, n=N, c=C, scale=2.0):
    return [tf.constant(random_normal(b, n, c, seed=i, scale=scale)) for i in range(3)]


def outputs_and_gradients(q, k, v, implementation):
    """y, dq, dk, dv for a fixed random dy."""
    dy = tf.constant(random_normal(*q.shape, seed=9), q.dtype)
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        y = vector_attention.vector_attention(q, k, v=v, implementation=implementation)
    return [y, *tape.gradient(y, [q, k, v], output_gradients=dy)]


def exact_outputs_and_gradients(q, k, v):
    """The same in float64, by the softmax's derivative written out."""
    dy = random_normal(*q.shape, seed=9).astype(np.float64)
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    p = reference.softmax(q[:, :, None] * k[:, None], axis=2)  # [B, N, N, C]
    y = (p * v[:, None]).sum(axis=2)
    dp = dy[:, :, None] * v[:, None]
    ds = p * (dp - (p * dp).sum(axis=2, keepdims=True))
    dq = (ds * k[:, None]).sum(axis=2)
    dk = (ds * q[:, :, None]).sum(axis=1)
    return [y, dq, dk, (p * dy[:, :, None]).sum(axis=1)]


def assert_all_close(got, want, tolerance):
    for x, expected in zip(got, want, strict=True):
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(x), expected, rtol=0, atol=limit)


def test_vector_transformer_keeps_the_contract():
    check_layer(vector_attention.VectorTransformer(), SIZES)


@pytest.mark.parametrize("implementation", vector_attention.IMPLEMENTATIONS)
def test_vector_attention_is_equation_3(implementation):
    q, k, v = inputs()
    y = vector_attention.vector_attention(q, k, v=v, implementation=implementation)
    np.testing.assert_allclose(y, reference.vector_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("implementation", ["naive", "chunked"])
@pytest.mark.parametrize("n", [1, 8, 19, 64])
def test_gradients_are_exact(n, implementation, jit_compile):
    tensors = inputs(n=n)
    function = tf.function(outputs_and_gradients, jit_compile=jit_compile)
    got = function(*tensors, implementation)
    assert_all_close(got, exact_outputs_and_gradients(*tensors), tolerance=2e-5)


def draw(distribution, shape, seed):
    """Values of about unit size."""
    rng = np.random.default_rng(seed)
    return {
        "normal": lambda: rng.standard_normal(shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "heavy": lambda: rng.standard_t(3, shape),
        "clusters": lambda: (
            rng.choice([-1, 1], shape) + 0.05 * rng.standard_normal(shape)
        ),
        "constant": lambda: np.full(shape, 0.7),
        "zero": lambda: np.zeros(shape),
    }[distribution]()


# One shape for all: every order is compiled once.
FAST_SHAPE = (2, 157, 3)


@pytest.mark.parametrize("largest_logit", [0.1, 4.0, 11.0, 20.0, 60.0, 100.0, 300.0])
@pytest.mark.parametrize(
    "distribution", ["normal", "uniform", "heavy", "clusters", "constant", "zero"]
)
def test_fast_is_within_its_bound(distribution, largest_logit):
    q, k = (draw(distribution, FAST_SHAPE, seed) for seed in (1, 2))
    size = np.abs(q).max(axis=1) * np.abs(k).max(axis=1)  # [B, C]
    q *= (largest_logit / np.maximum(size, 1e-9))[:, None]
    tensors = [
        tf.constant(x, tf.float32) for x in (q, k, draw("normal", FAST_SHAPE, 3))
    ]
    got = outputs_and_gradients(*tensors, "fast")
    want = exact_outputs_and_gradients(*tensors)
    if distribution in ("constant", "zero"):  # gradients that are 0 but for rounding
        assert_all_close(got[:1] + got[3:], want[:1] + want[3:], tolerance=1e-5)
        np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    else:
        # Beyond all orders it is the exact implementation, within what float32 gives.
        assert_all_close(got, want, tolerance=1e-5 if largest_logit <= 100 else 1e-4)


@pytest.mark.parametrize(
    "largest, index", [(5.9, 0), (6.1, 1), (13.5, 2), (30, 3), (103, 4), (np.nan, 4)]
)
def test_order_follows_the_largest_logit(largest, index):
    q = np.zeros([2, 7, 3])
    k = np.zeros([2, 7, 3])
    q[1, 4, 2], k[1, 0, 2], k[1, 6, 2] = -largest / 2, -1.0, 3.0  # half a range of 2
    orders = exponential_kernel.ORDERS[tf.float64]
    chosen = exponential_kernel.choose_order(tf.constant(q), tf.constant(k), orders)
    assert len(orders) == 4 and int(chosen) == index


@pytest.mark.parametrize("dtype, tolerance", [(tf.float64, 1e-5), (tf.float32, 2e-2)])
def test_every_order_is_exact_up_to_its_limit(dtype, tolerance):
    shape = (1, 211, 2)
    for order in exponential_kernel.ORDERS[dtype]:
        q, k, v = (
            draw("clusters", shape, seed).astype(np.float32) for seed in range(3)
        )
        half_range = (k.max(axis=1) - k.min(axis=1)) / 2
        q *= 0.999 * order.limit / (np.abs(q).max(axis=1) * half_range)
        k -= k.mean(axis=1, keepdims=True)
        dy = random_normal(*shape, seed=9)
        v -= v.mean(axis=1, keepdims=True)
        tensors = [tf.constant(x) for x in (q, k, v)]
        y, slope, total = vector_attention._attend_by_order(
            *tensors, order=order, dtype=dtype
        )
        dk, dv = vector_attention._gradients_by_order(
            *tensors, y, total, tf.constant(dy), order=order, dtype=dtype
        )
        want = exact_outputs_and_gradients(*tensors)
        assert_all_close([y, dy * slope, dk, dv], want, tolerance)


def test_fast_grows_linearly():
    shape = [1, 256, 5]
    q = tf.TensorSpec(shape)
    graph = (
        tf.function(outputs_and_gradients).get_concrete_function(q, q, q, "fast").graph
    )
    n, c = shape[1:]
    assert largest_tensor(graph) < n * n * c


@pytest.mark.slow
def test_fast_compiles_as_soon_inside_a_compiled_step():
    """Once it took twenty times as long there; see `_barrier`."""
    tensors = inputs(b=1, n=512, c=216)

    def seconds(jit_compile):
        step = tf.function(outputs_and_gradients, jit_compile=jit_compile)
        start = time.perf_counter()
        step(*tensors, "fast")
        return time.perf_counter() - start

    assert seconds(True) < 3 * seconds(False)


def test_auto_is_fast_for_many_tokens():
    n = vector_attention.MIN_FAST_TOKENS

    def calls_of(n):
        spec = tf.TensorSpec([1, n, 2])
        attend = tf.function(lambda q: vector_attention.vector_attention(q, q, v=q))
        operations = attend.get_concrete_function(spec).graph.get_operations()
        called = [op.get_attr("f").name for op in operations if "Call" in op.type]
        return any("prepare_fast" in name for name in called)

    assert calls_of(n) and not calls_of(n - 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, v: (q, k + 30, v - 50),  # far from zero
        lambda q, k, v: (q * 40, k, v),  # saturated: one key takes all
        lambda q, k, v: (q * 0, k, v),  # the mean of v
        lambda q, k, v: (q, k * 0 + 3, v),  # equal keys
        lambda q, k, v: (-q, k, v * 0 + 2),  # equal values
    ],
)
@pytest.mark.parametrize("implementation", ["chunked", "fast"])
def test_extreme_inputs_stay_finite_and_exact(change, implementation):
    tensors = change(*inputs())
    got = outputs_and_gradients(*tensors, implementation)
    want = exact_outputs_and_gradients(*tensors)
    for x, expected in zip(got, want, strict=True):
        limit = 1e-4 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(x, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("implementation", ["chunked", "fast"])
def test_bfloat16_attends_in_float32(implementation):
    tensors = [tf.cast(x, tf.bfloat16) for x in inputs()]
    y = vector_attention.vector_attention(
        tensors[0], tensors[1], v=tensors[2], implementation=implementation
    )
    assert y.dtype == tf.bfloat16
    want = reference.vector_attention(*(tf.cast(x, tf.float32) for x in tensors))
    # As far off as rounding the exact result to 8 bits.
    np.testing.assert_allclose(tf.cast(y, tf.float32), want, rtol=2**-8, atol=1e-6)


def test_token_order_does_not_matter():
    layer = vector_attention.VectorTransformer()
    x = inputs()[0]
    np.testing.assert_allclose(layer(x[:, ::-1]), layer(x)[:, ::-1], atol=1e-5)


def largest_tensor(graph) -> int:
    """Elements of the largest static tensor of a graph and all its functions."""
    sizes = [
        output.shape.num_elements() or 0
        for op in graph.get_operations()
        for output in op.outputs
        if output.shape.is_fully_defined()
    ]
    bodies = [
        graph._get_function(name).graph
        for name in (function.name for function in graph._functions.values())
        if hasattr(graph._get_function(name), "graph")
    ]
    return max([*sizes, *(largest_tensor(body) for body in bodies)])


def test_chunked_gradient_never_holds_n_by_n_by_c():
    n, c = 96, 7
    q = tf.TensorSpec([1, n, c])
    traced = tf.function(outputs_and_gradients)
    for implementation, is_large in (("naive", True), ("chunked", False)):
        graph = traced.get_concrete_function(q, q, q, implementation).graph
        assert (largest_tensor(graph) >= n * n * c) == is_large


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match=r"must be one of \('auto', .* got 'quick'"):
        vector_attention.VectorTransformer("quick")
    q, k, v = inputs()
    with pytest.raises(ValueError, match="vector_attention: implementation must be"):
        vector_attention.vector_attention(q, k, v=v, implementation="quick")
