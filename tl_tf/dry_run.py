"""What a training will need: a few of its steps are run, nothing of them is kept."""

import dataclasses
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orbit
import tensorflow as tf
import tf_keras

from tl_tf import evaluator, memory, report
from tl_tf.inputs import split

TIMED_SECONDS = 5.0  # of training steps, and at most ...
TIMED_STEPS = 20
TIMED_BATCHES = 3  # of an evaluation
# About: the scalars of a loop in TensorBoard and in orbit.log; the JSON, table and
# pictures of an evaluation, besides its scores.
LOOP_BYTES, RESULT_BYTES = 1500, 300_000


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """What a training evaluates, by what, and how often."""

    name: str
    evaluator: evaluator.Evaluator
    data: split.Split
    times: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training is about to do.

    Attributes:
      start: step from which it goes on.
      total_steps: at which it ends.
      batch_size: examples in a step.
      device_batch: of them, those that a device computes at once.
      noun: what an example is.
      num_loops: progress lines.
      num_checkpoints: written in all.
      kept_checkpoints: on the disk at the end.
      evaluations: the quick ones and the whole one apart.
    """

    start: int
    total_steps: int
    batch_size: int
    device_batch: int
    noun: str
    num_loops: int
    num_checkpoints: int
    kept_checkpoints: int
    evaluations: Sequence[Evaluations]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What was measured; seconds and bytes.

    Attributes:
      first_step: seconds, tracing and compiling among them.
      step: seconds of one that is warm.
      wait_share: of that, what it waited for its input.
      evaluation_batches: seconds of a warm batch of each evaluation.
      save: seconds of writing a checkpoint.
      checkpoint_bytes: of its files.
      process_bytes: highest resident memory of this process.
      weight_bytes: on a device: weights, their gradients, the optimizer's.
      activation_bytes: on a device, estimated; None where the model's shapes are not
        static.
    """

    first_step: float
    step: float
    wait_share: float
    evaluation_batches: tuple[float, ...]
    save: float
    checkpoint_bytes: int
    process_bytes: int
    weight_bytes: int
    activation_bytes: int | None


def measure(
    plan: Plan,
    loop: orbit.AbstractTrainer,
    *,
    make_manager: Callable[[Path], tf.train.CheckpointManager],
    model_dir: Path,
) -> Needs:
    """Runs some steps, some batches of each evaluation, and writes one checkpoint.

    Args:
      plan: of the training.
      loop: of trainer.Trainer; its model and optimizer change.
      make_manager: of checkpoints in a folder; the folder is deleted again.
      model_dir: where the training would write; on its disk a checkpoint is tried.

    Raises:
      ValueError: for broken data, a loss that is not finite, a full disk.
    """

    def train(num_steps: int) -> tuple[float, dict]:
        start = time.perf_counter()
        output = loop.train(tf.constant(num_steps))
        return time.perf_counter() - start, output

    first, _ = train(1)
    warm, _ = train(1)
    num_steps = max(1, min(TIMED_STEPS, round(TIMED_SECONDS / warm)))
    seconds, output = train(num_steps)
    batches = tuple(_batch_seconds(one) for one in plan.evaluations)
    with tempfile.TemporaryDirectory(
        prefix=".dry_run-", dir=_existing(model_dir)
    ) as folder:
        start = time.perf_counter()
        manager = make_manager(Path(folder))
        manager.save(int(loop.optimizer.iterations.numpy()), check_interval=False)
        save = time.perf_counter() - start
        num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    process_bytes = _resident_bytes()  # before what no training does
    model, optimizer = loop.model, loop.optimizer
    return Needs(
        first_step=first,
        step=seconds / num_steps,
        wait_share=output["input/wait_share"],
        evaluation_batches=batches,
        save=save,
        checkpoint_bytes=num_bytes,
        process_bytes=process_bytes,
        weight_bytes=memory.bytes_of(model.variables)
        + memory.bytes_of(model.trainable_variables)
        + memory.bytes_of(optimizer.variables),
        activation_bytes=_activation_bytes(model, loop.iterator, plan.device_batch),
    )


def table(plan: Plan, needs: Needs, *, model_dir: Path) -> str:
    """A table of what the whole training needs, of time, memory and disk."""
    steps = plan.total_steps - plan.start
    rate = plan.batch_size / needs.step
    parts = [
        ("first step", needs.first_step, min(1, steps), "traced and compiled"),
        (
            "steps",
            needs.step,
            max(0, steps - 1),
            f"{rate:.3g} {plan.noun}/s, waiting {needs.wait_share:.0%} for input",
        ),
    ]
    for one, batch in zip(plan.evaluations, needs.evaluation_batches, strict=True):
        num_batches = one.data.num_batches
        about = f"{num_batches} batches of {_time(batch)}"
        parts.append((one.name, batch * num_batches, one.times, about))
    parts.append(("checkpoints", needs.save, plan.num_checkpoints, ""))
    lines = [
        f"dry run: {steps} steps of {plan.batch_size} {plan.noun}"
        + (f", from step {plan.start}" if plan.start else "")
        + "; nothing of it is kept",
        f"{'time':14}{'each':>10}{'times':>9}{'in all':>10}",
    ]
    for name, each, times, about in parts:
        row = f"  {name:12}{_time(each):>10}{times:9d}{_time(each * times):>10}"
        lines.append(f"{row}   {about}".rstrip())
    total = sum(each * times for _, each, times, _ in parts)
    lines += [f"  {'together':12}{_time(total):>29}", *_memory_lines(plan, needs)]
    return "\n".join([*lines, *_disk_lines(plan, needs, model_dir)])


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.is_dir())


def _memory_lines(plan: Plan, needs: Needs) -> list[str]:
    activations = needs.activation_bytes
    about = "not known" if activations is None else memory.size(activations)
    weights = memory.size(needs.weight_bytes)
    device = needs.weight_bytes + (activations or 0)
    return [
        "memory",
        f"  {'this process':12}{memory.size(needs.process_bytes):>29}"
        f"   at its peak, of the machine's {memory.size(_machine_bytes())}",
        f"  {'a device':12}{memory.size(device):>29}"
        f"   estimated: weights, gradients, optimizer {weights};"
        f" activations of {plan.device_batch} {plan.noun} {about}",
    ]


def _disk_lines(plan: Plan, needs: Needs, model_dir: Path) -> list[str]:
    free = shutil.disk_usage(_existing(model_dir)).free
    num = plan.kept_checkpoints + 1  # one that is being written
    checkpoints = num * needs.checkpoint_bytes
    results = plan.num_loops * LOOP_BYTES + sum(
        one.times * (_score_bytes(one.data) + RESULT_BYTES) for one in plan.evaluations
    )
    total = checkpoints + results
    lines = [
        "disk",
        f"  {'checkpoints':12}{memory.size(needs.checkpoint_bytes):>10}{num:9d}"
        f"{memory.size(checkpoints):>10}   one of them while it is written",
        f"  {'results':12}{memory.size(results):>29}   about, with TensorBoard's files",
        f"  {'together':12}{memory.size(total):>29}   of {memory.size(free)} free",
    ]
    if total > free:
        lines.append(
            "  NOT ENOUGH: free space, lower train.keep_checkpoints, or use another"
            " --model_dir."
        )
    return lines


def _batch_seconds(one: Evaluations) -> float:
    one.evaluator.score_batches(1)  # traces and compiles
    num_batches = min(TIMED_BATCHES, one.data.num_batches)
    start = time.perf_counter()
    one.evaluator.score_batches(num_batches)
    return (time.perf_counter() - start) / num_batches


def _score_bytes(data: split.Split) -> int:
    """Of float32 scores of every view, and its loss."""
    return 4 * data.num_examples * data.num_views * (len(data.classes) + 1)


def _activation_bytes(
    model: tf_keras.Model, iterator: tf.data.Iterator, device_batch: int
) -> int | None:
    shape = iterator.element_spec["pixels"].shape[1:]
    try:
        return memory.estimate(model, [device_batch, *shape]).training_bytes
    except ValueError:
        return None


def _resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else report.time_left(seconds)
