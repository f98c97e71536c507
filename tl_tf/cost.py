"""What one forward pass costs, counted from the traced inference graph.

The paper uses two conventions, and both count more than matrix products and
convolutions, whose multiply-adds alone are `multiply_adds`.

Tables I to IX are half of what XLA's cost analysis finds, so that a multiply-add is
one: `xla_flops` / 2. XLA counts one per element for each addition, multiplication,
division or comparison, one per element read for a sum, and nothing for what it calls
transcendental: exp, tanh, sigmoid, rsqrt. So a softmax is four (maximum, difference,
sum, division), a squared difference two, a third power two.

Tables XI to XIII are TensorFlow's graph profiler's: two per multiply-add, five per
element of a softmax, one per element of any other arithmetic, nothing for batch
normalisation, ReLU and sigmoid, which the profiler does not know: `flops`.

Differs from both: a multiply-add with the zeros of a padding is counted (XLA leaves it
out: 0.02 % of the most affected model), and LayerNorm is counted as Keras writes it
(nine per element in XLA's way; Flax' form is seven).

Nothing is run: tracing needs no memory for the activations.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tl_tf import runtime
from tl_tf.layers import recompute, vector_attention

# The profiler's list: one per element written, respectively read.
ELEMENTWISE = frozenset(
    "Add AddV2 BiasAdd Maximum Minimum Mul Neg Pow RealDiv Reciprocal Rsqrt Square "
    "SquaredDifference Sub".split()
)
REDUCTIONS = frozenset(["Mean", "Sum"])
SOFTMAX_FLOPS = 5

# What the profiler counts as nothing: moves, reads, and functions it does not know.
FREE = frozenset(
    "Cast ConcatV2 Const ExpandDims Fill FusedBatchNormV3 Identity IdentityN Max NoOp "
    "Pack Pad Placeholder Range Rank ReadVariableOp Relu Reshape Shape Sigmoid Slice "
    "Split SplitV Squeeze StopGradient StridedSlice Tanh Tile Transpose Unpack "
    "ZerosLike".split()
)

PRODUCTS = frozenset(
    "BatchMatMulV2 Conv2D Conv3D DepthwiseConv2dNative Einsum MatMul".split()
)

# XLA's, per element written. What is missing here and is no reduction, power or product
# moves data or is transcendental.
XLA_ELEMENTWISE = {
    **dict.fromkeys(
        "Add AddV2 BiasAdd Maximum Minimum Mul Neg RealDiv Reciprocal Relu Square "
        "Sub".split(),
        1,
    ),
    "SquaredDifference": 2,
    "Softmax": 4,
    "FusedBatchNormV3": 4,  # minus mean, times 1 / deviation, times gamma, plus beta
}
XLA_REDUCTIONS = frozenset(["Max", "Mean", "Sum"])
_XLA_COUNTS = XLA_REDUCTIONS | set(XLA_ELEMENTWISE)


@dataclasses.dataclass(frozen=True)
class Row:
    """The cost of everything under one name scope.

    Attributes:
      scope: parts of names, joined by slashes.
      multiply_adds: of matrix products and convolutions.
      xla_flops: two per multiply-add, and other arithmetic as XLA counts it.
      flops: two per multiply-add, and other arithmetic as the profiler counts it.
      parameters: trained ones.
    """

    scope: str
    multiply_adds: int = 0
    xla_flops: int = 0
    flops: int = 0
    parameters: int = 0


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model, one row per innermost name scope.

    Parameters leave out the moving statistics of batch normalisation.

    Attributes:
      model: its name.
      input_shape: batch included.
      rows: in the order of the graph.
      outputs: by the first part, or the first two parts, of a scope: the shape of the
        last tensor in it that is read outside.
      endpoints: the shapes of the model's endpoints.
    """

    model: str
    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]
    outputs: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    endpoints: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def at_depth(self, depth: int) -> tuple[Row, ...]:
        """Adds the rows up by the first `depth` parts of their scopes, in order."""
        return _add_up(
            dataclasses.replace(row, scope="/".join(row.scope.split("/")[:depth]))
            for row in self.rows
        )

    @property
    def total(self) -> Row:
        """The whole model."""
        (row,) = _add_up(dataclasses.replace(row, scope="total") for row in self.rows)
        return row


def count(model: tf_keras.Model, input_shape: Sequence[int]) -> Cost:
    """Counts one inference pass of a model that is called as model(x, training=False).

    Vector attention is counted as the text defines it, whatever computes it.

    Args:
      model: built.
      input_shape: static, batch included.
    Raises:
      ValueError: the graph has an operation that the counter does not know, or a shape
        that is not static.
    """
    rows = []
    strategy = getattr(model, "distribute_strategy", None)  # of a layer: the current
    strategy = strategy or tf.distribute.get_strategy()
    first = runtime.host_index(strategy) * runtime.host_replicas(strategy)  # of ours

    def infer(x):  # as a replica does: between them, reading a variable is arithmetic
        with tf.distribute.ReplicaContext(strategy, first):
            return model(x, training=False)

    with vector_attention.implemented(model, "naive"):
        # Traced anew and kept nowhere: a later call must not find the naive graph.
        function = tf.function(infer, autograph=False)
        spec = tf.TensorSpec(input_shape, tf.float32)
        traced = function.get_concrete_function(spec)
    graph, result = traced.graph, traced.structured_outputs
    endpoints = result[1] if isinstance(result, tuple) else {}
    for op in graph.get_operations():
        if op.type in FREE and op.type not in _XLA_COUNTS:
            continue
        if f"/{recompute.IN_ORDER}" in op.name:  # or with a number behind
            continue
        multiply_adds = _multiply_adds(op)
        row = Row(
            _scope(model, op.name),
            multiply_adds,
            xla_flops=2 * multiply_adds + _xla_arithmetic(op),
            flops=2 * multiply_adds + _profiler_arithmetic(op),
        )
        rows.append(row)
    for weight in model.weights:
        if "moving_" not in weight.name:
            size = math.prod(weight.shape)
            rows.append(Row(_scope(model, weight.name), parameters=size))
    rows = [
        row for row in _add_up(rows) if row.flops or row.xla_flops or row.parameters
    ]
    return Cost(
        model.name,
        tuple(input_shape),
        tuple(rows),
        outputs=_outputs(model, graph),
        endpoints={name: tuple(x.shape) for name, x in endpoints.items()},
    )


def of_view(cost: Cost) -> dict[str, Any]:
    """GFLOPs of one forward pass, for the JSON of a result."""
    return {
        "gflops_per_view": cost.total.xla_flops / 2e9,
        "profiler_gflops_per_view": cost.total.flops / 1e9,
        "convention": "gflops: half of XLA's count, one per multiply-add (Tables I-IX);"
        " profiler: two per multiply-add (Tables XI-XIII)",
    }


def of_views(one: dict[str, Any], num_views: int) -> dict[str, Any]:
    """What `of_view` says, and the same for all views of one example."""
    totals = {
        key.replace("per_view", "per_example"): value * num_views
        for key, value in one.items()
        if key.endswith("per_view")
    }
    return {**one, **totals}


def views_line(one: dict[str, Any], num_views: int, *, noun: str) -> str:
    """GFLOPs per view and per `noun`, a video or an image, in words."""

    def shown(gflops: float) -> str:
        return f"{gflops:,.0f}" if gflops >= 1000 else f"{gflops:.4g}"

    texts = [
        f"{shown(one[key])} per view, {shown(one[key] * num_views)} per {noun}"
        f" ({convention})"
        for key, convention in (
            ("gflops_per_view", "one per multiply-add, Tables I-IX"),
            ("profiler_gflops_per_view", "two, Tables XI-XIII"),
        )
    ]
    return f"GFLOPs: {'; '.join(texts)}"


def _scope(model: tf_keras.Model, name: str) -> str:
    return name.removeprefix(f"{model.name}/").rpartition("/")[0]


def _outputs(model: tf_keras.Model, graph: tf.Graph) -> dict[str, tuple[int, ...]]:
    last: dict[str, tuple[int, tuple[int, ...]]] = {}
    places = {op: place for place, op in enumerate(graph.get_operations())}
    for op in places:
        reader = _scope(model, op.name).split("/")
        for x in op.inputs:
            maker = _scope(model, x.op.name).split("/")
            if not x.dtype.is_floating or x.op.type in ("ReadVariableOp", "Const"):
                continue
            for depth in (1, 2)[: len(maker)]:
                scope = maker[:depth]
                if scope != reader[:depth]:
                    found = (places[x.op], tuple(x.shape))
                    name = "/".join(scope)
                    last[name] = max(found, last.get(name, found), key=lambda f: f[0])
    return {name: shape for name, (_, shape) in last.items()}


def _add_up(rows) -> tuple[Row, ...]:
    sums = collections.defaultdict(lambda: [0, 0, 0, 0])
    for row in rows:
        counts = (row.multiply_adds, row.xla_flops, row.flops, row.parameters)
        sums[row.scope] = [a + b for a, b in zip(sums[row.scope], counts, strict=True)]
    return tuple(Row(scope, *counts) for scope, counts in sums.items())


def _profiler_arithmetic(op: tf.Operation) -> int:
    """What TensorFlow's profiler counts besides products."""
    if op.type in ELEMENTWISE:
        return _num_elements(op, op.outputs[0])
    if op.type in REDUCTIONS:
        return _num_elements(op, op.inputs[0])
    if op.type == "Softmax":
        return SOFTMAX_FLOPS * _num_elements(op, op.outputs[0])
    return 0


def _xla_arithmetic(op: tf.Operation) -> int:
    """What XLA counts besides products; half of it is in Tables I to IX."""
    if op.type in XLA_REDUCTIONS:
        return _num_elements(op, op.inputs[0])
    if op.type == "Pow":
        exponent = tf.get_static_value(op.inputs[1])
        is_whole = exponent is not None and exponent.ndim == 0 and exponent in (2, 3, 4)
        return (int(exponent) - 1 if is_whole else 0) * _num_elements(op, op.outputs[0])
    return XLA_ELEMENTWISE.get(op.type, 0) * _num_elements(op, op.outputs[0])


def _multiply_adds(op: tf.Operation) -> int:
    """Multiply-adds of a product or a convolution; 0 for any other known operation."""
    if op.type not in PRODUCTS:
        if op.type in FREE | ELEMENTWISE | REDUCTIONS | {"Softmax"}:
            return 0
        raise ValueError(
            f"cost: {op.name} is a {op.type}, whose cost is unknown. Add it to "
            "tl_tf/cost.py."
        )
    if op.type in ("Conv2D", "Conv3D"):
        *window, _ = op.inputs[1].shape  # [KT, KH, KW, C / groups, D]
        return _num_elements(op, op.outputs[0]) * math.prod(window)
    if op.type == "DepthwiseConv2dNative":
        *window, _, _ = op.inputs[1].shape  # [KH, KW, C, multiplier]
        return _num_elements(op, op.outputs[0]) * math.prod(window)
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        summed = op.inputs[0].shape[-2 if transposed else -1]
        return _num_elements(op, op.outputs[0]) * summed
    terms = op.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {
        letter: size
        for term, x in zip(terms, op.inputs, strict=True)
        for letter, size in zip(term, x.shape, strict=True)
    }
    return math.prod(sizes.values())


def _num_elements(op: tf.Operation, x: tf.Tensor) -> int:
    if not x.shape.is_fully_defined():
        raise ValueError(
            f"cost: {op.name} has the shape {x.shape}, wanted static ones."
        )
    return x.shape.num_elements()
