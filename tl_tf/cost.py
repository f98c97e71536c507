"""What one forward pass costs, counted from the traced inference graph.

Two conventions are in use, and the paper uses both. Tables I to IX count one per
multiply-add of matrix products and convolutions, and nothing else: `multiply_adds`.
Tables XI to XIII are TensorFlow's graph profiler's: two per multiply-add, five per
element of a softmax, one per element of any other arithmetic, nothing for batch
normalisation, ReLU and sigmoid, which the profiler does not know: `flops`.

Nothing is run: tracing needs no memory for the activations.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import tensorflow as tf
import tf_keras

from tl_tf.layers import vector_attention

# One per element written, respectively read. The profiler's list.
ELEMENTWISE = frozenset(
    "Add AddV2 BiasAdd Maximum Minimum Mul Neg Pow RealDiv Reciprocal Rsqrt Square "
    "SquaredDifference Sub".split()
)
REDUCTIONS = frozenset(["Mean", "Sum"])
SOFTMAX_FLOPS = 5

# What the profiler counts as nothing: moves, reads, and functions it does not know.
FREE = frozenset(
    "Cast ConcatV2 Const ExpandDims Fill FusedBatchNormV3 Identity IdentityN NoOp Pack "
    "Pad Placeholder Range Rank ReadVariableOp Relu Reshape Shape Sigmoid Slice Split "
    "Squeeze StopGradient StridedSlice Tanh Transpose Unpack ZerosLike".split()
)


@dataclasses.dataclass(frozen=True)
class Row:
    """The cost of everything under one name scope."""

    scope: str
    multiply_adds: int
    flops: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model, one row per innermost name scope.

    Parameters leave out the moving statistics of batch normalisation.
    """

    model: str
    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]

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
    with _naive_vector_attention(model):
        # Traced anew and kept nowhere: a later call must not find the naive graph.
        function = tf.function(lambda x: model(x, training=False), autograph=False)
        spec = tf.TensorSpec(input_shape, tf.float32)
        graph = function.get_concrete_function(spec).graph
    for op in graph.get_operations():
        multiply_adds, other = _cost_of(op)
        flops = 2 * multiply_adds + other
        rows.append(Row(_scope(model, op.name), multiply_adds, flops, parameters=0))
    for weight in model.weights:
        if "moving_" not in weight.name:
            size = math.prod(weight.shape)
            rows.append(Row(_scope(model, weight.name), 0, 0, parameters=size))
    rows = [row for row in _add_up(rows) if row.flops or row.parameters]
    return Cost(model.name, tuple(input_shape), tuple(rows))


def table(cost: Cost, depth: int = 2) -> str:
    """Formats the rows at a depth (1: stages, 2: blocks) and the total."""
    rows = cost.at_depth(depth)
    width = max(len(row.scope) for row in rows)
    shape = " x ".join(str(size) for size in cost.input_shape)
    lines = [
        f"{cost.model}, one forward pass of {shape}",
        f"{'':{width}}  {'G multiply-adds':>15}  {'GFLOPs':>9}  {'M parameters':>12}",
    ]
    for row in (*rows, cost.total):
        lines.append(
            f"{row.scope or '(model)':{width}}  {row.multiply_adds / 1e9:15.3f}  "
            f"{row.flops / 1e9:9.3f}  {row.parameters / 1e6:12.4f}"
        )
    lines += [
        "multiply-adds: one each, in convolutions and matrix products (Tables I-IX).",
        "GFLOPs: two per multiply-add, softmax 5 and other arithmetic 1 per element"
        " (Tables XI-XIII).",
        "parameters: the trained ones; moving statistics are left out.",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _naive_vector_attention(model: tf_keras.Model) -> Iterator[None]:
    layers = [
        layer
        for layer in model.submodules
        if isinstance(layer, vector_attention.VectorTransformer)
    ]
    implementations = [layer.implementation for layer in layers]
    for layer in layers:
        layer.implementation = "naive"
    try:
        yield
    finally:
        for layer, implementation in zip(layers, implementations, strict=True):
            layer.implementation = implementation


def _scope(model: tf_keras.Model, name: str) -> str:
    return name.removeprefix(f"{model.name}/").rpartition("/")[0]


def _add_up(rows) -> tuple[Row, ...]:
    sums = collections.defaultdict(lambda: [0, 0, 0])
    for row in rows:
        counts = (row.multiply_adds, row.flops, row.parameters)
        sums[row.scope] = [a + b for a, b in zip(sums[row.scope], counts, strict=True)]
    return tuple(Row(scope, *counts) for scope, counts in sums.items())


def _cost_of(op: tf.Operation) -> tuple[int, int]:
    """Counts one operation.  -> multiply-adds, other arithmetic."""
    if op.type in FREE:
        return 0, 0
    if op.type in ELEMENTWISE:
        return 0, _num_elements(op, op.outputs[0])
    if op.type in REDUCTIONS:
        return 0, _num_elements(op, op.inputs[0])
    if op.type == "Softmax":
        return 0, SOFTMAX_FLOPS * _num_elements(op, op.outputs[0])
    if op.type == "Conv2D":
        *window, _ = op.inputs[1].shape  # [KH, KW, C / groups, D]
        return _num_elements(op, op.outputs[0]) * math.prod(window), 0
    if op.type == "DepthwiseConv2dNative":
        *window, _, _ = op.inputs[1].shape  # [KH, KW, C, multiplier]
        return _num_elements(op, op.outputs[0]) * math.prod(window), 0
    if op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        summed = op.inputs[0].shape[-2 if transposed else -1]
        return _num_elements(op, op.outputs[0]) * summed, 0
    if op.type == "Einsum":
        terms = op.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {
            letter: size
            for term, x in zip(terms, op.inputs, strict=True)
            for letter, size in zip(term, x.shape, strict=True)
        }
        return math.prod(sizes.values()), 0
    raise ValueError(
        f"cost: {op.name} is a {op.type}, whose cost is unknown. Add it to "
        "tl_tf/cost.py."
    )


def _num_elements(op: tf.Operation, x: tf.Tensor) -> int:
    if not x.shape.is_fully_defined():
        raise ValueError(
            f"cost: {op.name} has the shape {x.shape}, wanted static ones."
        )
    return x.shape.num_elements()
