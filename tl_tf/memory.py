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

import dataclasses
from collections.abc import Sequence

import tensorflow as tf
import tf_keras

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


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of activations; the module's docstring says what is counted.

    Attributes:
      input_shape: batch included.
      inference_bytes: highest sum in a forward pass.
      kept_bytes: of the forward pass, for the backward pass.
      training_bytes: highest sum in a forward and backward pass.
      weight_bytes: of the model's variables, in none of the others.
    """

    input_shape: tuple[int, ...]
    inference_bytes: int
    kept_bytes: int
    training_bytes: int
    weight_bytes: int


def estimate(model: tf_keras.Model, input_shape: Sequence[int]) -> Memory:
    """Estimates a model that is called as model(x, training=..., seed=...).

    Args:
      model: built.
      input_shape: static, batch included.
    Raises:
      ValueError: a tensor has a shape that is not static.
    """
    spec = tf.TensorSpec(input_shape, tf.float32)
    inference = tf.function(
        lambda x: _logits(model(x, training=False)), autograph=False
    ).get_concrete_function(spec)
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

    training = tf.function(train, autograph=False).get_concrete_function(spec)
    both = _Tensors(training.graph, training.outputs, are_outputs_counted=False)
    forward = set(training.graph.get_operations()[:forward_ops])
    return Memory(
        tuple(input_shape),
        inference_bytes=_Tensors(inference.graph, inference.outputs).peak(),
        kept_bytes=both.crossing(forward),
        training_bytes=both.peak(),
        weight_bytes=sum(w.shape.num_elements() * w.dtype.size for w in model.weights),
    )


def table(memory: Memory) -> str:
    """Formats the figures and says what they are."""
    shape = " x ".join(str(size) for size in memory.input_shape)
    rows = {
        "inference": memory.inference_bytes,
        "kept for the backward pass": memory.kept_bytes,
        "peak of training": memory.training_bytes,
        "weights (times 3 to 4 in training)": memory.weight_bytes,
    }
    return "\n".join(
        [
            f"activation memory of {shape}, MB; in proportion to the batch",
            *(f"{name:34}  {size / 1e6:10.1f}" for name, size in rows.items()),
            "inference and peak: live tensors in the order of the graph, views free,"
            " element-wise in place.",
            "kept: what the gradient's graph reads of the forward pass. No scratch"
            " space is in these.",
        ]
    )


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

    def crossing(self, before: set[tf.Operation]) -> int:
        """Bytes of the tensors of some operations that any other one reads."""
        read = {
            tensor.name: tensor
            for op in self.operations
            if op not in before
            for tensor in self.read_by(op)
            if tensor.op in before
        }
        return sum(self.size(tensor) for tensor in read.values())

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
