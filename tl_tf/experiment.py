"""The composition root: the only place where data, model and loops meet."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import gin
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import (
    checkpoint,
    config,
    cost,
    evaluator,
    losses,
    optim,
    records,
    report,
    runtime,
    trainer,
)
from tl_tf.inputs import video

# Configurables that a mode does not call, so that a recipe's bindings of them may rest.
_NOT_CALLED = {
    "train": {"evaluate", "build_evaluator", "eval/clip_dataset", "inspect"},
    "train_and_eval": {"evaluate", "inspect"},
    "eval": {"train", "train/clip_dataset", "build_schedule", "inspect"},
}


@dataclasses.dataclass(frozen=True)
class Session:
    """What every mode needs to know.

    Attributes:
      mode: "train", "eval" or "train_and_eval".
      model_dir: checkpoints, logs and results.
      data_dir: a folder per data set.
      strategy: of the devices.
    """

    mode: str
    model_dir: Path
    data_dir: Path
    strategy: tf.distribute.Strategy

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files; each host saves its own place."""
        return runtime.host_index(self.strategy) == 0

    @property
    def checkpoint_dir(self) -> Path:
        """Each host keeps its own place in its own data."""
        host = runtime.host_index(self.strategy)
        return self.model_dir / f"host-{host:05d}" if host else self.model_dir

    def check_config(self) -> None:
        """Refuses bindings that nothing has used, then writes the configuration.

        Raises:
          ValueError: naming them.
        """
        names = config.unused(lambda name: name not in _NOT_CALLED[self.mode])
        if names:
            raise ValueError(
                f"bindings that nothing uses: {', '.join(names)}. Remove them from the"
                " recipe, or bind what this recipe calls."
            )
        if self.is_chief:
            config.write(self.model_dir)


def run(mode: str, *, model_dir: Path, data_dir: Path, tpu: str | None) -> None:
    """Does what `run.py --mode` names; gin must have been loaded.

    Raises:
      ValueError: for anything that the user can mend.
    """
    if mode == "inspect":
        inspect()
        return
    strategy = runtime.configure_runtime(tpu)
    session = Session(mode, model_dir, data_dir, strategy)
    build_missing_data(data_dir)
    if mode == "eval":
        evaluate(session)
    else:
        train(session)


@gin.configurable
def build_missing_data(data_dir: Path, *, dataset: str | None = None) -> None:
    """Builds a data set that can be made from nothing, where it is not there yet.

    Args:
      data_dir: holds a folder per data set.
      dataset: its name; None to build nothing.
    """
    if dataset is None or (data_dir / dataset / "dataset_info.json").is_file():
        return
    from data import build  # the builders' libraries are only needed here

    report.say(f"{data_dir / dataset}: not there yet, building it.")
    build.build(dataset, data_dir)


@gin.configurable
def train(
    session: Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    batch_size: int = gin.REQUIRED,
    total_steps: int = gin.REQUIRED,
    learning_rate: float = gin.REQUIRED,
    learning_rate_clips: int = gin.REQUIRED,
    seed: int = gin.REQUIRED,
    clip_norm: float | None = None,
    accumulation_steps: int = 1,
    steps_per_loop: int = 100,
    checkpoint_every_steps: int = 1000,
    keep_checkpoints: int = 3,
    eval_every_steps: int | None = None,
    jit_compile: bool = False,
) -> None:
    """Trains to `total_steps`, going on from the newest checkpoint if there is one.

    Args:
      session: mode, folders and devices.
      build_model: a function of the number of classes, as @build_x2p1d.
      batch_size: clips in a step, over all replicas.
      total_steps: of the whole training.
      learning_rate: for a batch of `learning_rate_clips`; it grows with the batch in
        proportion (App. B.3 states a rate per core, and 4 clips a core).
      learning_rate_clips: see `learning_rate`.
      seed: of every random draw; the same seed gives the same run.
      clip_norm: global norm to which gradients are clipped; None for no clipping.
      accumulation_steps: micro-batches to a step.
      steps_per_loop: steps between progress lines; nothing is read back between.
      checkpoint_every_steps: rounded up to whole loops; the first is after the first
        loop, the last at the end.
      keep_checkpoints: newest ones that stay.
      eval_every_steps: in train_and_eval, besides the end; None for the end only.
        A checkpoint is saved before each evaluation.
      jit_compile: XLA for forward and backward pass on CPU and GPU.

    Raises:
      ValueError: for what the user can mend: data, sizes, folders, a loss that is not
        finite.
    """
    strategy = session.strategy
    hosts = runtime.num_hosts(strategy)
    if batch_size % strategy.num_replicas_in_sync:
        raise ValueError(
            f"train.batch_size={batch_size} does not divide into"
            f" {strategy.num_replicas_in_sync} replicas."
        )
    with gin.config_scope("train"):
        clips = video.clip_dataset(
            session.data_dir,
            is_training=True,
            batch_size=batch_size // hosts,
            seed=seed,
            num_hosts=hosts,
            host=runtime.host_index(strategy),
        )
    rate = optim.rate_of_batch(
        learning_rate, rate_clips=learning_rate_clips, batch_size=batch_size
    )
    schedule = optim.build_schedule(rate, total_steps)
    model, optimizer = _build(session, build_model, schedule, clips.info, seed=seed)
    if jit_compile:
        _check_compilable(model, strategy)
    iterator = iter(clips.dataset)
    loss = losses.build_loss()
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=loss,
        strategy=strategy,
        iterator=iterator,
        seed=seed,
        clip_norm=clip_norm,
        accumulation_steps=accumulation_steps,
        jit_compile=jit_compile,
        explain_data_error=clips.explain,
        on_first_batch=lambda batch: report.show_frames(
            "train/frames", batch, clips.info.classes, step=optimizer.iterations
        ),
    )
    evaluation = None
    if session.mode == "train_and_eval":
        evaluation = build_evaluator(
            session, _eval_clips(session), model, optimizer, loss=loss
        )
    session.check_config()
    _say_data(clips, session)
    step = optimizer.iterations
    with _orbit_lines(session):
        controller = orbit.Controller(
            global_step=step,
            trainer=loop,
            evaluator=evaluation,
            strategy=strategy,
            train_actions=[report.TrainProgress(total_steps, step)] * session.is_chief,
            steps_per_loop=min(steps_per_loop, total_steps),
            checkpoint_manager=checkpoint.manager(
                session.checkpoint_dir,
                model=model,
                optimizer=optimizer,
                iterator=iterator,
                classes=clips.info.classes,
                every_steps=checkpoint_every_steps,
                keep=keep_checkpoints,
            ),
            summary_dir=_summary_dir(session),
        )
        if step.numpy():
            report.say(f"train  going on from checkpoint ckpt-{step.numpy()}")
        with controller.summary_manager.summary_writer().as_default():
            report.show_config(int(step.numpy()))
        every = eval_every_steps if evaluation else None
        for until in _milestones(int(step.numpy()), total_steps, every):
            controller.train(until)  # saves at its end: what is scored can be had again
            if evaluation:
                controller.evaluate()
        if evaluation and not evaluation.first_batch:  # trained to the end before
            controller.evaluate()


@gin.configurable
def evaluate(
    session: Session, *, build_model: Callable[..., tf_keras.Model] = gin.REQUIRED
) -> None:
    """Evaluates the newest checkpoint in the model folder.

    Args:
      session: mode, folders and devices.
      build_model: the one it was trained with.

    Raises:
      ValueError: for a missing or different checkpoint, or broken data.
    """
    clips = _eval_clips(session)
    # A schedule, as in training: a bare number would be one more variable to restore.
    never_used = tf_keras.optimizers.schedules.PolynomialDecay(0.0, 1)
    model, optimizer = _build(session, build_model, never_used, clips.info)
    evaluation = build_evaluator(
        session, clips, model, optimizer, loss=losses.build_loss()
    )
    session.check_config()
    checkpoint.restore_for_evaluation(
        session.model_dir,
        model=model,
        optimizer=optimizer,
        classes=clips.info.classes,
    )
    with _orbit_lines(session):
        orbit.Controller(
            global_step=optimizer.iterations,
            evaluator=evaluation,
            strategy=session.strategy,
            eval_summary_dir=_summary_dir(session),
        ).evaluate()


@gin.configurable
def build_evaluator(
    session: Session,
    clips: video.ClipDataset,
    model: tf_keras.Model,
    optimizer: tf_keras.optimizers.Optimizer,
    *,
    loss: losses.Loss,
    merge: str = "max",
    jit_compile: bool = False,
) -> evaluator.Evaluator:
    """The evaluator of a recipe: every video of the split once, its views merged.

    Args:
      session: mode, folders and devices.
      clips: the split, for one pass.
      model: built.
      optimizer: whose averaged weights are evaluated, if it averages them.
      loss: turns logits into scores.
      merge: "max" or "mean" of the scores of a video's views.
      jit_compile: XLA for the forward pass on CPU and GPU.

    Raises:
      ValueError: for another merge, or a batch that does not divide.
    """
    batch_size = clips.dataset.element_spec["labels"].shape[0]
    replicas = runtime.host_replicas(session.strategy)
    if batch_size % replicas:
        raise ValueError(
            f"eval/clip_dataset.batch_size={batch_size} does not divide into this"
            f" host's {replicas} replicas."
        )
    writer = report.ResultWriter(
        session.model_dir,
        clips.info,
        clips.split,
        views={
            "views": clips.num_views,
            "merge": merge,
            "short_videos_looped": clips.short_videos,
        },
    )

    def on_result(evaluation: evaluator.Evaluation) -> None:
        if session.is_chief:
            step = int(optimizer.iterations.numpy())
            writer.write(evaluation, step=step)
            frames, labels, maps = loop.look()
            if maps:  # the first TokenLearner's: later ones see mixed inputs (§6.4)
                first = next(iter(maps.values()))
                report.show_token_maps(
                    frames, labels, first, clips.info.classes, step=step
                )

    loop = evaluator.Evaluator(
        model,
        optimizer,
        loss=loss,
        strategy=session.strategy,
        batches=clips.dataset,
        num_batches=clips.num_batches,
        reports=clips.info.reports(clips.split),
        merge=merge,
        jit_compile=jit_compile,
        explain_data_error=clips.explain,
        on_progress=report.EvalProgress(),
        on_result=on_result,
    )
    return loop


@gin.configurable
def inspect(
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    num_classes: int = gin.REQUIRED,
    num_frames: int = gin.REQUIRED,
    crop_px: int = gin.REQUIRED,
) -> None:
    """Prints a model's parameters and cost; needs no data.

    Args:
      build_model: a function of the number of classes.
      num_classes: K.
      num_frames: T of the input.
      crop_px: H and W of the input.
    """
    model = build_model(num_classes)
    counted = cost.count(model, (1, num_frames, crop_px, crop_px, 3))
    report.say(cost.table(counted))


def _build(
    session: Session,
    build_model: Callable[..., tf_keras.Model],
    learning_rate,
    info: records.DatasetInfo,
    *,
    seed: int = 0,
) -> tuple[tf_keras.Model, tf_keras.optimizers.Optimizer]:
    """Model and optimizer with all their variables, in the strategy's scope."""
    tf_keras.utils.set_random_seed(seed)  # of the initial weights; nothing else draws
    with session.strategy.scope():
        model = build_model(len(info.classes))
        optimizer = optim.build_optimizer(learning_rate)
        optimizer.build(model.trainable_variables)
    return model, optimizer


def _milestones(step: int, total_steps: int, every: int | None) -> list[int]:
    """Steps at which training pauses: the same ones after a restart.

    Raises:
      ValueError: for an interval below 1.
    """
    if every is not None and every < 1:
        raise ValueError(f"train.eval_every_steps must be at least 1, got {every}.")
    steps = range(every, total_steps, every) if every else []
    return [s for s in (*steps, total_steps) if s > step]


def _check_compilable(model: tf_keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Refuses what XLA cannot compile: replicas that talk within the forward pass."""
    replicas = strategy.num_replicas_in_sync
    is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if replicas == 1 or is_tpu:  # on a TPU the replicas are compiled as one program
        return
    if any(getattr(layer, "synchronized", False) for layer in model.submodules):
        raise ValueError(
            f"train.jit_compile=True cannot be had with batch_norm='sync' on {replicas}"
            " replicas. Leave jit_compile at False, or use batch_norm='local'."
        )


def _eval_clips(session: Session) -> video.ClipDataset:
    with gin.config_scope("eval"):
        return video.clip_dataset(
            session.data_dir,
            is_training=False,
            seed=0,  # evaluation draws nothing
            num_hosts=runtime.num_hosts(session.strategy),
            host=runtime.host_index(session.strategy),
        )


def _summary_dir(session: Session) -> str | None:
    return str(session.model_dir / "tensorboard") if session.is_chief else None


@contextlib.contextmanager
def _orbit_lines(session: Session) -> Iterator[None]:
    """Orbit prints its own account of the loop; it goes to a file."""
    session.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    with open(session.checkpoint_dir / "orbit.log", "a", encoding="utf-8") as log:
        with contextlib.redirect_stdout(log):
            yield


def _say_data(clips: video.ClipDataset, session: Session) -> None:
    coverage = clips.info.coverage(clips.split)
    report.say(
        f"data   {clips.info.dataset}/{clips.split}: {clips.num_videos} videos"
        f" (coverage {coverage['share']:.1%}), {len(clips.info.classes)} classes,"
        f" {clips.info.fps:g} fps; {clips.short_videos} shorter than a clip, looped"
    )
    replicas = session.strategy.num_replicas_in_sync
    kind = type(session.strategy).__name__
    report.say(f"device {replicas} replicas under {kind}; run in {session.model_dir}")
