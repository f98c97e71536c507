"""How much memory the activations of a model take, estimated from its traced graph.

Three figures, all of them without weights, gradients of weights and optimizer:

- inference: the operations run in the order of the graph. A tensor takes its bytes from
  the operation that makes it to the last one that reads it; a reshape or another view
  takes none; an element-wise operation writes over an input that nobody reads later.
  The figure is the highest sum.
- kept for the backward pass: the tensors of the forward pass that any operation of its
  gradient's graph reads, each once.
- peak of training: the highest sum, as for inference, over forward and backward pass.

Not in them: the scratch space of convolutions, what an allocator loses, and the batch's
uint8 copy. All but some constants grow in proportion to the batch.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras

from tl_tf.layers import vector_attention

# Write nothing: their output is a view of their first input.
VIEWS = frozenset(
    "ExpandDims Identity IdentityN PreventGradient Reshape Squeeze StopGradient".split()
)
# Hold no activation, and neither does a view of them.
NOT_COUNTED = frozenset(["Const", "ReadVariableOp", "VarHandleOp"])
# Read a shape and no values.
OF_SHAPES = frozenset(["BroadcastGradientArgs", "Rank", "Shape", "ShapeN", "Size"])
# TensorFlow lets these write over an input.
IN_PLACE = frozenset(
    "Add AddN AddV2 BiasAdd Maximum Minimum Mul Neg Pow RealDiv Reciprocal Relu "
    "ReluGrad Rsqrt RsqrtGrad Sigmoid SigmoidGrad Softmax Square SquaredDifference Sub "
    "Tanh TanhGrad".split()
)

# Of the estimated activations: docs/RESULTS.md measures 1.17 to 1.28 of them.
HEADROOM = 1.3


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of activations; the module's docstring says what is counted.

    Attributes:
      input_shape: batch included, of inference.
      inference_bytes: highest sum in a forward pass.
      kept_bytes: of the forward pass, for the backward pass.
      training_bytes: highest sum in a forward and backward pass.
      weight_bytes: of the model's variables, in none of the others.
      trainable_bytes: of them, those that are trained.
      kept_by_scope: `kept_bytes` by the scope of what makes them.
    """

    input_shape: tuple[int, ...]
    inference_bytes: int
    kept_bytes: int
    training_bytes: int
    weight_bytes: int
    trainable_bytes: int
    kept_by_scope: Mapping[str, int]

    def largest_batch(self, device_bytes: float, *, slots: int | None = None) -> int:
        """Examples that a device can take at once, with HEADROOM for their activations.

        Args:
          device_bytes: all that it has.
          slots: values that the optimizer keeps of each weight; None for inference.
        """
        fixed, activations = self.weight_bytes, self.inference_bytes
        if slots is not None:  # gradients, too
            fixed += (1 + slots) * self.trainable_bytes
            activations = self.training_bytes
        left = device_bytes - fixed
        return max(0, int(left * self.input_shape[0] / (HEADROOM * activations)))


def estimate(
    model: tf_keras.Model,
    input_shape: Sequence[int],
    *,
    training_shape: Sequence[int] | None = None,
) -> Memory:
    """Estimates a model that is called as model(x, training=..., seed=...).

    Vector attention is taken in chunks, whatever computes it: what "fast" compiles has
    no shapes that can be read.

    Args:
      model: built.
      input_shape: static, batch included.
      training_shape: of as many examples, if training looks at another size of them.
    Raises:
      ValueError: a tensor has a shape that is not static.
    """
    forward_ops = 0

    def train(x: tf.Tensor) -> list[tf.Tensor]:
        nonlocal forward_ops
        weights = model.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            logits = _logits(model(x, training=True, seed=tf.constant([0, 0])))
        forward_ops = len(tf.compat.v1.get_default_graph().get_operations())
        gradients = tape.gradient(logits, weights)
        return [tf.convert_to_tensor(g) for g in gradients if g is not None]

    def infer(x: tf.Tensor) -> tf.Tensor:
        return _logits(model(x, training=False))

    def trace(function, shape: Sequence[int]) -> tf.types.experimental.ConcreteFunction:
        spec = tf.TensorSpec(shape, model.compute_dtype)  # as of augment.normalize
        return tf.function(function, autograph=False).get_concrete_function(spec)

    with vector_attention.implemented(model, "chunked"):
        inference = trace(infer, input_shape)
        training = trace(train, training_shape or input_shape)
    both = _Tensors(training.graph, training.outputs, are_outputs_counted=False)
    forward = set(training.graph.get_operations()[:forward_ops])
    kept = collections.Counter()
    for tensor in both.crossing(forward):
        scope = tensor.op.name.removeprefix(f"{model.name}/").rpartition("/")[0]
        kept[scope] += both.size(tensor)
    return Memory(
        tuple(input_shape),
        inference_bytes=_Tensors(inference.graph, inference.outputs).peak(),
        kept_bytes=kept.total(),
        training_bytes=both.peak(),
        weight_bytes=bytes_of(model.weights),
        trainable_bytes=bytes_of(model.trainable_weights),
        kept_by_scope=kept,
    )


def bytes_of(variables: Sequence[tf.Variable]) -> int:
    """Of all of them."""
    return sum(v.shape.num_elements() * v.dtype.size for v in variables)


def size(num_bytes: float) -> str:
    """For people: `1.2 GB`, `85 MB`; decimal units."""
    unit, name = (1e9, "GB") if num_bytes >= 999.5e6 else (1e6, "MB")
    value = num_bytes / unit
    return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"


def _logits(result) -> tf.Tensor:
    return result[0] if isinstance(result, tuple) else result


class _Tensors:
    """Who owns the memory of each tensor of a graph, and when it is read last."""

    def __init__(
        self, graph: tf.Graph, outputs: Sequence[tf.Tensor], are_outputs_counted=True
    ):
        self.owners: dict[str, tf.Tensor | None] = {}
        operations = graph.get_operations()
        for op in operations:
            for i, tensor in enumerate(op.outputs):
                self.owners[tensor.name] = self._owner(op, tensor, i)
        self.operations = _needed(operations, outputs)
        self.last_read: dict[str, int] = {}
        for i, op in enumerate(self.operations):
            for tensor in self.read_by(op):
                self.last_read[tensor.name] = i
        for tensor in outputs:
            owner = self.owners[tensor.name]
            if owner is not None:
                self.last_read[owner.name] = len(self.operations)
        self.uncounted = set()
        if not are_outputs_counted:
            owners = (self.owners[tensor.name] for tensor in outputs)
            self.uncounted = {owner.name for owner in owners if owner is not None}

    def _owner(self, op: tf.Operation, tensor: tf.Tensor, i: int) -> tf.Tensor | None:
        is_resource = tensor.dtype in (tf.resource, tf.variant)
        if is_resource or op.type in NOT_COUNTED | OF_SHAPES:
            return None
        if op.type in VIEWS:
            return self.owners[op.inputs[i].name]
        return tensor

    def read_by(self, op: tf.Operation) -> list[tf.Tensor]:
        """Owners of what an operation reads, without the weights."""
        if op.type in OF_SHAPES | VIEWS:
            return []
        owners = [self.owners[x.name] for x in op.inputs]
        return list({o.name: o for o in owners if o is not None}.values())

    def size(self, tensor: tf.Tensor) -> int:
        """Bytes."""
        if tensor.name in self.uncounted:
            return 0
        if not tensor.shape.is_fully_defined():
            # A shape, or what a kernel hands to its gradient.
            if tensor.shape.rank == 1 or tensor.op.type.startswith("FusedBatchNorm"):
                return 0
            raise ValueError(
                f"memory: {tensor.op.name} has the shape {tensor.shape}, wanted static"
                " ones."
            )
        return tensor.shape.num_elements() * tensor.dtype.size

    def crossing(self, before: set[tf.Operation]) -> list[tf.Tensor]:
        """The tensors of some operations that any other one reads."""
        read = {
            tensor.name: tensor
            for op in self.operations
            if op not in before
            for tensor in self.read_by(op)
            if tensor.op in before
        }
        return list(read.values())

    def peak(self) -> int:
        """Highest sum of live bytes."""
        live = highest = 0
        for i, op in enumerate(self.operations):
            done = [x for x in self.read_by(op) if self.last_read[x.name] == i]
            made = [x for x in op.outputs if self.owners[x.name] is x]
            if op.type in IN_PLACE and made:
                reused = [x for x in done if self.size(x) == self.size(made[0])][:1]
                live -= sum(self.size(x) for x in reused)
                done = [x for x in done if all(x is not y for y in reused)]
            live += sum(self.size(x) for x in made)
            highest = max(highest, live)
            unread = [x for x in made if x.name not in self.last_read]
            live -= sum(self.size(x) for x in (*done, *unread))
        return highest


def _needed(operations, outputs) -> list[tf.Operation]:
    """The operations that the outputs depend on, in the order of the graph."""
    needed, todo = set(), [tensor.op for tensor in outputs]
    while todo:
        op = todo.pop()
        if op not in needed:
            needed.add(op)
            todo += [tensor.op for tensor in op.inputs]
    return [op for op in operations if op in needed]
