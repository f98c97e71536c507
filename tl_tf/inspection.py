"""What a recipe's model is made of, costs and takes, told without data or training."""

import gc
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import gin
import tensorflow as tf
import tf_keras

from tl_tf import cost, memory, optim, report

DEVICES_GB = (8, 16, 32, 80)
LOW_PRECISIONS = {"bfloat16": "mixed_bfloat16"}  # besides float32
LARGE_BATCH = 64
_REDUCED = ("/learned_tokens", "/pooled")  # end the endpoints with fewer tokens


@gin.configurable
def inspect(
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    num_classes: int = gin.REQUIRED,
    input_shape: Sequence[int] = gin.REQUIRED,
    num_clips: int = 1,
    num_crops: int = 1,
) -> tuple[tf_keras.Model, cost.Cost, tuple[int, int]]:
    """Builds a recipe's model and counts parameters and cost; needs no data.

    Args:
      build_model: a function of the number of classes.
      num_classes: K.
      input_shape: of one view: T, H, W, 3 or H, W, 3.
      num_clips: of a video at evaluation.
      num_crops: of a clip at evaluation.

    Returns:
      The model, what one view costs, and the numbers of clips and crops.
    """
    model = build_model(num_classes)
    return model, cost.count(model, (1, *input_shape)), (num_clips, num_crops)


def show() -> None:
    """Prints everything that is known of a recipe's model: the mode "inspect"."""
    model, counted, (num_clips, num_crops) = inspect()
    shapes = {
        "input_shape": counted.input_shape,
        "training_shape": training_shape(counted.input_shape),
    }
    estimates = {"float32": memory.estimate(model, **shapes)}
    report.say(table(counted, estimates["float32"].kept_by_scope))
    is_video = len(counted.input_shape) == 5
    if line := tokens_line(
        counted.endpoints, noun="a clip" if is_video else "an image"
    ):
        report.say(line)
    if num_clips * num_crops > 1:
        line = cost.views_line(
            cost.of_view(counted), num_clips * num_crops, noun="video"
        )
        report.say(f"{num_clips} x {num_crops} views a video; {line}")
    report.say(memory_table(estimates["float32"], shapes["training_shape"]))
    del model
    gc.collect()
    for name, policy in LOW_PRECISIONS.items():
        estimates[name] = _estimate_under(policy, **shapes)
    report.say(
        fits_table(
            estimates,
            slots=count_slots(),
            batch_size=gin.get_bindings("train").get("batch_size"),
            noun="clips" if is_video else "images",
        )
    )


def training_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what the recipe trains on, for the one it is evaluated on."""
    is_video = len(input_shape) == 5
    with gin.config_scope("train"):
        bound = gin.get_bindings("clip_dataset" if is_video else "image_dataset")
    side = bound["crop_px"] if is_video else bound["image_px"]
    return (*input_shape[:-3], side, side, 3)


def table(counted: cost.Cost, kept: Mapping[str, int]) -> str:
    """The stages, under each its blocks, and the total; equal blocks share a line.

    Args:
      counted: of one forward pass.
      kept: bytes kept for the backward pass, by scope; the same batch.
    """
    unit, scale = ("G", 1e9) if counted.total.multiply_adds >= 1e9 else ("M", 1e6)

    def cells(row: cost.Row, scope: str | None, num_bytes: int) -> tuple[str, ...]:
        return (
            _shape_text(counted.outputs.get(scope, ()), counted.input_shape[0]),
            f"{row.multiply_adds / scale:.3f}",
            f"{row.xla_flops / 2 / scale:.3f}",
            f"{row.flops / scale:.3f}",
            f"{row.parameters / 1e6:.4f}",
            f"{num_bytes / 1e6:.1f}",
        )

    columns = (f"{unit} multiply-adds", f"XLA {unit}FLOPs/2", f"profiler {unit}FLOPs")
    rows = [("", ("output", *columns, "M parameters", "MB kept"))]
    for stage in counted.at_depth(1):
        scope = stage.scope
        rows.append(
            (scope or "(model)", cells(stage, scope or None, _within(kept, scope)))
        )
        if scope.startswith("stage_"):
            blocks = []
            for block in counted.at_depth(2):
                first, _, name = block.scope.partition("/")
                if first == scope:
                    used = _within(kept, block.scope) if name else kept.get(scope, 0)
                    found = cells(block, block.scope if name else None, used)
                    blocks.append((name or "(rest)", found))
            rows += _shared_lines(blocks)
    rows.append(("total", cells(counted.total, None, sum(kept.values()))))
    widths = [max(len(values[i]) for _, values in rows) for i in range(len(rows[0][1]))]
    width = max(len(name) for name, _ in rows)
    lines = [f"{counted.model}, one forward pass of {_shape_text(counted.input_shape)}"]
    for name, (output, *numbers) in rows:
        line = f"{name:{width}}  {output:{widths[0]}}"
        for number, size in zip(numbers, widths[1:], strict=True):
            line += f"  {number:>{size}}"
        lines.append(line)
    lines += [
        "multiply-adds: one each, in convolutions and matrix products alone.",
        f"XLA {unit}FLOPs/2: one per multiply-add; softmax 4/2, other arithmetic 1/2"
        " per element (Tables I-IX).",
        f"profiler {unit}FLOPs: two per multiply-add; softmax 5, other arithmetic 1 per"
        " element (Tables XI-XIII).",
        "parameters: the trained ones; moving statistics are left out.",
        "kept: what a training step holds of the stage for the backward pass, float32.",
    ]
    return "\n".join(lines)


def tokens_line(endpoints: Mapping[str, Sequence[int]], *, noun: str) -> str:
    """How many tokens there are before and after they are reduced; "" if none are told.

    Args:
      endpoints: shapes of a model's, of a batch of 1.
      noun: of what they are, as "a clip".
    """
    patches = None
    if "embedding" in endpoints:
        patches = math.prod(endpoints["embedding"][1:-1])
    places: dict[tuple[int | None, int, str], list[str]] = {}
    for name, shape in endpoints.items():
        ending = next((end for end in _REDUCED if name.endswith(end)), None)
        if ending is None:
            continue
        place = name.removesuffix(ending)
        maps = endpoints.get(f"{place}/token_maps")
        before = math.prod(maps[1:-1]) if maps else patches
        what = "learned" if ending == _REDUCED[0] else "pooled"
        key = (before, math.prod(shape[1:-1]), what)
        places.setdefault(key, []).append(place)
    if not places:
        return (
            f"tokens of {noun}: {patches:,} patch tokens, all the way"
            if patches
            else ""
        )
    texts = []
    for (before, after, what), names in places.items():
        goes_back = len(names) > 1 or not names[0].startswith("block_")
        where = "in" if goes_back else "from"
        on = "" if goes_back else " on"
        first = f"{before:,} patch tokens, " if before and not texts else ""
        texts.append(f"{first}{after:,} {what} tokens {where} {', '.join(names)}{on}")
    return f"tokens of {noun}: {'; '.join(texts)}"


def memory_table(estimated: memory.Memory, training_shape: Sequence[int]) -> str:
    """The estimated figures, and what they are."""
    shape = _shape_text(estimated.input_shape)
    if tuple(training_shape) != estimated.input_shape:
        shape += f" (training: {_shape_text(training_shape)})"
    rows = {
        "inference": estimated.inference_bytes,
        "kept for the backward pass": estimated.kept_bytes,
        "peak of training": estimated.training_bytes,
        "weights (times 3 to 4 in training)": estimated.weight_bytes,
    }
    return "\n".join(
        [
            f"activation memory of {shape}, float32, MB; in proportion to the batch",
            *(f"{name:34}  {size / 1e6:10.1f}" for name, size in rows.items()),
            "inference and peak: live tensors in the order of the graph, views free,"
            " element-wise in place.",
            "kept: what the gradient's graph reads of the forward pass. No scratch"
            " space is in these.",
        ]
    )


def fits_table(
    estimates: Mapping[str, memory.Memory],
    *,
    slots: int,
    batch_size: int | None,
    noun: str,
) -> str:
    """The largest batches that devices take, of several sizes.

    Args:
      estimates: by the name of the precision, float32 among them.
      slots: values that the optimizer keeps of each weight.
      batch_size: the recipe's, of which it is told how many devices it takes; None for
        a recipe without.
      noun: of what a batch is.
    """
    lines = [
        f"{f'largest batch of {noun} on a device of':34}"
        + "".join(f"{f'{gb} GB':>8}" for gb in DEVICES_GB)
    ]
    rows = [("training", name) for name in estimates]
    # In bfloat16, inference takes no less: softmax and norms are in float32.
    for phase, name in [*rows, ("inference", "float32")]:
        one = estimates[name]
        used = slots if phase == "training" else None
        found = [one.largest_batch(gb * 1e9, slots=used) for gb in DEVICES_GB]
        cells = "".join(f"{size or 'none':>8}" for size in found)
        lines.append(f"  {f'{phase}, {name}':32}{cells}")
        if phase == "training" and batch_size:
            devices = [-(-batch_size // size) if size else "-" for size in found]
            cells = "".join(f"{count:>8}" for count in devices)
            lines.append(f"    {f'devices for a batch of {batch_size}':30}{cells}")
    one = estimates["float32"]
    training = one.weight_bytes + (1 + slots) * one.trainable_bytes
    lines.append(
        f"in them: weights {memory.size(one.weight_bytes)}, in training with gradients"
        f" and optimizer {memory.size(training)}; activations as estimated, and"
        f" {memory.HEADROOM - 1:.0%} more."
    )
    return "\n".join(lines)


def count_slots() -> int:
    """How many values the recipe's optimizer keeps of each weight."""
    optimizer = optim.build_optimizer(0.0)
    weight = tf.Variable([0.0])
    optimizer.build([weight])
    return sum(variable.shape == weight.shape for variable in optimizer.variables)


def _estimate_under(policy: str, **shapes: Sequence[int]) -> memory.Memory:
    # Of a large batch: casts of weights do not grow with it.
    shapes = {name: (LARGE_BATCH, *shape[1:]) for name, shape in shapes.items()}
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        bound = gin.get_bindings("inspect")
        model = bound["build_model"](bound["num_classes"])
        return memory.estimate(model, **shapes)
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


def _shared_lines(blocks: Sequence[tuple[str, tuple]]) -> list[tuple[str, tuple]]:
    """One line for blocks in a row that are alike but for their names."""
    lines = []
    for values, alike in itertools.groupby(blocks, key=lambda block: block[1]):
        names = [name for name, _ in alike]
        each = f" to {names[-1]}, each" if len(names) > 1 else ""
        lines.append((f"  {names[0]}{each}", values))
    return lines


def _within(kept: Mapping[str, int], scope: str) -> int:
    """Bytes under a scope; in the model's own, those of no other."""
    if not scope:
        return kept.get(scope, 0)
    return sum(
        size
        for name, size in kept.items()
        if name == scope or name.startswith(f"{scope}/")
    )


def _shape_text(shape: Sequence[int], batch_size: int | None = None) -> str:
    """As `8 x 16`; without the batch, if it is 1 and told."""
    if batch_size == 1 and shape[:1] == (1,):
        shape = shape[1:]
    return " x ".join(str(size) for size in shape)
