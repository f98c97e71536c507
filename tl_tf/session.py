"""What every mode needs: folders and devices, data, a model with its weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import gin
import tensorflow as tf
import tf_keras

from tl_tf import (
    checkpoint,
    config,
    data_service,
    durable,
    losses,
    optim,
    report,
    results,
    runtime,
    serving,
    transfer,
)
from tl_tf.inputs import split

# A schedule, as in training: a bare number would be one more variable to restore.
NEVER_USED = tf_keras.optimizers.schedules.PolynomialDecay(0.0, 1)

# Configurables that only some modes call: bindings of them may rest in the others.
_TRAINING = ("train", "train_and_eval", "profile", "find_lr")
_SCORING = ("eval", "train_and_eval")
_LEARNING = ("train", "train_and_eval")
_SERVING = ("predict", "visualize", "export", "demo")
_CALLED_IN = {
    "train": _TRAINING,
    "build_schedule": _LEARNING,
    # And in _SERVING, if nothing is saved.
    "warm_start": (*_LEARNING, "find_lr", "eval", "fewshot"),
    "train/clip_dataset": _TRAINING,
    "train/image_dataset": _TRAINING,
    "evaluate": ("eval",),
    "build_evaluator": _SCORING,
    "eval/clip_dataset": _SCORING,
    "eval/image_dataset": _SCORING,
    "build_loss": (*_TRAINING, "eval", *_SERVING),
    "clip_dataset": (*_TRAINING, "eval"),
    "image_dataset": (*_TRAINING, "eval"),
    "open_split": (*_TRAINING, "eval", "fewshot"),
    "evaluate_fewshot": ("fewshot",),
    "save_npz": ("save_npz",),
    "inspect": (),
    "predict": ("predict",),
    "visualize": ("visualize",),
    "export": ("export",),
    "demo": ("demo",),
    "find_lr": ("find_lr",),
}


@dataclasses.dataclass(frozen=True)
class Session:
    """What every mode needs to know.

    Attributes:
      mode: of run.py.
      model_dir: checkpoints, logs and results.
      data_dir: a folder per data set.
      strategy: of the devices.
      data_service: address of the tf.data service that reads training's input, if any.
      checkpoint: "newest", "best", or a name as "ckpt-100": whose weights are used by
        what does not train.
      inputs: files, folders, patterns, or "-" for the standard input: what is predicted
        or drawn.
      output_dir: for what is written about them; None for a folder in `model_dir`.
      saved_model: folder of an exported model that predicts instead of a checkpoint.
      render: whether predictions are drawn into videos.
      dry_run: whether training only tells what it would need.
    """

    mode: str
    model_dir: Path
    data_dir: Path
    strategy: tf.distribute.Strategy
    data_service: str | None = None
    checkpoint: str = "newest"
    inputs: tuple[str, ...] = ()
    output_dir: Path | None = None
    saved_model: Path | None = None
    render: bool = False
    dry_run: bool = False

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files; each host saves its own place."""
        return runtime.host_index(self.strategy) == 0

    @property
    def checkpoint_dir(self) -> Path:
        """Each host keeps its own place in its own data."""
        host = runtime.host_index(self.strategy)
        return self.model_dir / f"host-{host:05d}" if host else self.model_dir

    @property
    def checkpoints(self) -> dict[int, Path]:
        """This host's checkpoints, without an ending, by their step."""
        prefixes = durable.prefixes(self.checkpoint_dir)
        return {int(path.name.rpartition("-")[2]): path for path in prefixes}

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run has been here before."""
        return bool(durable.prefixes(self.checkpoint_dir))

    @property
    def needs_data(self) -> bool:
        """Whether the mode opens the data set: a checkpoint knows its own classes."""
        if self.mode not in _SERVING:
            return True
        is_known = self.has_checkpoint or self.saved_model is not None
        return not is_known and _has_other_weights()

    def check_config(self) -> None:
        """Refuses bindings that nothing has used, then writes the configuration.

        A dry run writes nothing, nor does what only uses a trained model.

        Raises:
          ValueError: naming them.
        """
        called_in = dict(_CALLED_IN)
        if self.has_checkpoint:
            called_in["warm_start"] = ()
        if not self.needs_data:
            called_in["build_missing_data"] = ()
        names = config.unused(
            lambda name: self.mode in called_in.get(name, (self.mode,))
        )
        if names:
            raise ValueError(
                f"bindings that nothing uses: {', '.join(names)}. Remove them from the"
                " recipe, or bind what this recipe calls."
            )
        if self.is_chief and not self.dry_run and self.mode not in _SERVING:
            results.write_config(self.model_dir)


@gin.configurable
def open_split(
    session: Session,
    *,
    is_training: bool,
    build_input: Callable[..., split.Split] = gin.REQUIRED,
    **arguments,
) -> split.Split:
    """Opens this host's part of a split, bound under the scope train/ or eval/.

    Args:
      session: mode, folders and devices.
      is_training: tells the scopes apart.
      build_input: as @clip_dataset or @image_dataset.
      **arguments: of build_input, before what is bound.
    """
    arguments = {"seed": 0, **arguments}  # evaluation draws nothing
    through_service = is_training and session.data_service
    if through_service:  # it keeps no place in the data: a restart draws anew
        arguments["seed"] += max(session.checkpoints, default=0)
    with gin.config_scope("train" if is_training else "eval"):
        data = build_input(
            session.data_dir,
            is_training=is_training,
            num_hosts=runtime.num_hosts(session.strategy),
            host=runtime.host_index(session.strategy),
            **arguments,
        )
    if through_service:
        return data_service.read_through(data, session.data_service)
    return data


def agree_on_checkpoint(session: Session) -> None:
    """Lets all hosts go on from the newest checkpoint that each of them has.

    A host that was killed may lack the newest of the others; they save it again.

    Raises:
      ValueError: when this host has checkpoints, but none that all have.
    """
    if runtime.num_hosts(session.strategy) == 1:
        return
    whole = {s: p for s, p in session.checkpoints.items() if not durable.fault(p)}
    newest = runtime.common_step(whole, session.strategy)
    if newest == max(whole, default=None):
        return
    folder = session.checkpoint_dir
    if newest is None:
        raise ValueError(
            f"{folder}: there are checkpoints of steps {sorted(whole)}, but none that"
            " all hosts have. Put the missing folders of the other hosts back, or use"
            " another --model_dir."
        )
    kept = sorted(step for step in whole if step <= newest)
    tf.compat.v1.train.update_checkpoint_state(
        str(folder),
        str(whole[newest]),
        all_model_checkpoint_paths=[str(whole[step]) for step in kept],
    )
    for step in whole.keys() - kept:
        report.say(f"train  {whole[step]}: not all hosts have it, so it is deleted")
        durable.delete(whole[step])


def build(
    session: Session,
    build_model: Callable[..., tf_keras.Model],
    learning_rate,
    num_classes: int,
    seed: int = 0,
) -> tuple[tf_keras.Model, tf_keras.optimizers.Optimizer]:
    """Model and optimizer with all their variables, in the strategy's scope."""
    tf_keras.utils.set_random_seed(seed)  # of the initial weights; nothing else draws
    with session.strategy.scope():
        model = build_model(num_classes)
        optimizer = optim.build_optimizer(learning_rate)
        optimizer.build(model.trainable_variables)
    return model, optimizer


def restore_any(
    session: Session, build_model: Callable[..., tf_keras.Model]
) -> tuple[tf_keras.Model, tf_keras.optimizers.Optimizer]:
    """The session's checkpoint, of whatever classes it was trained on."""
    which = session.checkpoint
    classes = checkpoint.read_classes(session.model_dir, which)
    model, optimizer = build(session, build_model, NEVER_USED, len(classes))
    checkpoint.restore_for_evaluation(
        session.model_dir,
        model=model,
        optimizer=optimizer,
        classes=classes,
        which=which,
    )
    return model, optimizer


def restore_classifier(
    session: Session, build_model: Callable[..., tf_keras.Model]
) -> tuple[serving.Classifier, int]:
    """The run's model, or a warm start's, and what evaluation does before and behind.

    Returns:
      It, with averaged weights if the optimizer averages them, and its step.

    Raises:
      ValueError: for a missing or different checkpoint, or one whose data are unknown.
    """
    if not (session.has_checkpoint or _has_other_weights()):
        checkpoint.find(session.model_dir)  # says what is missing
    if session.has_checkpoint:
        trained = serving.Trained.read(session.model_dir)
        model, optimizer = restore_any(session, build_model)
    else:
        trained = serving.Trained.of_split(open_split(session, is_training=False))
        num_classes = len(trained.classes)
        model, optimizer = build(session, build_model, NEVER_USED, num_classes)
        if not warm_start(model, is_complete=True):
            checkpoint.read_classes(session.model_dir)  # which says what is missing
    if optimizer.use_ema:
        optimizer.finalize_variable_values(model.trainable_variables)
    classifier = serving.Classifier(
        model,
        sampler=serving.build_sampler(trained),
        loss=losses.build_loss(),
        merge=gin.get_bindings("build_evaluator").get("merge", "max"),
        trained=trained,
    )
    return classifier, int(optimizer.iterations.numpy())


def _has_other_weights() -> bool:
    """Whether the recipe names weights for a warm start."""
    return "path" in gin.get_bindings("warm_start", resolve_references=False)


def warm_start(model: tf_keras.Model, *, is_complete: bool = False) -> bool:
    """Reads foreign weights if the recipe names some.  -> whether it does.

    Raises:
      ValueError: when `is_complete` is asked for and a variable keeps its first value.
    """
    rows = checkpoint.warm_start(model)
    if not rows:
        return False
    report.say(transfer.format_rows(rows))
    kept = [row.name for row in rows if row.outcome in ("replaced", "new")]
    if is_complete and kept:
        raise ValueError(
            f"warm_start.path leaves {len(kept)} variables at their first values, as"
            f" {', '.join(kept[:3])}: nothing to evaluate. Train first, or name weights"
            " of this model and these classes."
        )
    return True


def check_eval_batch(data: split.Split, session: Session) -> None:
    """Raises a ValueError unless a batch divides into this host's replicas."""
    batch_size = data.batches.element_spec["labels"].shape[0]
    replicas = runtime.host_replicas(session.strategy)
    if batch_size % replicas:
        raise ValueError(
            f"the evaluation's batch_size={batch_size} does not divide into this host's"
            f" {replicas} replicas. Set eval/clip_dataset.batch_size, or"
            " eval/image_dataset.batch_size."
        )


def summary_dir(session: Session) -> str | None:
    """Where the first host writes for TensorBoard."""
    return str(session.model_dir / "tensorboard") if session.is_chief else None


@contextlib.contextmanager
def orbit_lines(session: Session) -> Iterator[None]:
    """Orbit prints its own account of the loop; it goes to a file."""
    session.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    with open(session.checkpoint_dir / "orbit.log", "a", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log):
            yield


def remember(data: split.Split, session: Session) -> None:
    """Writes what the model is trained on beside its checkpoints, for later use.

    What is known there of other splits stays.
    """
    if not session.is_chief:
        return
    found = serving.Trained.of_split(data)
    with contextlib.suppress(ValueError):  # nothing is there, or nothing of use
        before = serving.Trained.read(session.model_dir)
        if (before.dataset, before.classes) == (found.dataset, found.classes):
            coverage = before.coverage | found.coverage
            found = dataclasses.replace(found, coverage=coverage)
    found.write(session.model_dir)


def say_data(data: split.Split, session: Session) -> None:
    """Prints what is trained on, and where."""
    facts = f", {data.facts}" if data.facts else ""
    report.say(
        f"data   {data.dataset}/{data.split}: {data.num_examples} {data.noun}"
        f" (coverage {data.coverage['share']:.1%}), {len(data.classes)} classes{facts}"
    )
    replicas = session.strategy.num_replicas_in_sync
    kind = type(session.strategy).__name__
    if session.data_service:
        report.say(
            f"data   through {session.data_service}: each example at most once an"
            " epoch, in no fixed order; a restart begins a new epoch"
        )
    report.say(f"device {replicas} replicas under {kind}; run in {session.model_dir}")
