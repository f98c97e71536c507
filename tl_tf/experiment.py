"""The composition root: the only place where data, model and loops meet."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import (
    checkpoint,
    cost,
    demo,
    evaluator,
    export,
    fewshot,
    losses,
    memory,
    optim,
    predict,
    profiling,
    report,
    runtime,
    scores,
    stopping,
    trainer,
)
from tl_tf import session as sessions
from tl_tf.inputs import augment, color, split

# Of few-shot classification, as in the authors' code.
L2_REGS = (2.0**-6, 2.0**-2, 2.0**2, 2.0**6, 2.0**9, 2.0**10)

COLOR_DRAW = 1  # folded into the seed with which examples are mixed


@tf.autograph.experimental.do_not_convert  # no graph here needs the seconds it takes
def run(
    mode: str,
    *,
    model_dir: Path,
    data_dir: Path,
    tpu: str | None,
    **options,
) -> None:
    """Does what `run.py --mode` names; gin must have been loaded.

    Args:
      mode: of run.py.
      model_dir: checkpoints, logs and results.
      data_dir: a folder per data set.
      tpu: its name, or None for GPUs or the CPU.
      **options: other attributes of sessions.Session.

    Raises:
      ValueError: for anything that the user can mend.
    """
    if mode == "inspect":
        model, counted, (num_clips, num_crops) = inspect()
        report.say(cost.table(counted))
        if num_clips * num_crops > 1:
            line = cost.views_line(
                cost.of_view(counted), num_clips * num_crops, noun="video"
            )
            report.say(f"{num_clips} x {num_crops} views a video; {line}")
        report.say(memory.table(memory.estimate(model, counted.input_shape)))
        return
    strategy = runtime.configure_runtime(tpu)
    session = sessions.Session(mode, model_dir, data_dir, strategy, **options)
    if session.needs_data:
        build_missing_data(data_dir)
    modes = {
        "eval": evaluate,
        "fewshot": evaluate_fewshot,
        "save_npz": save_npz,
        "export": export.export,
        "demo": demo.demo,
        "predict": predict.predict,
    }
    with runtime.explain_lost_hosts(strategy):
        modes.get(mode, train)(session)


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
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    batch_size: int = gin.REQUIRED,
    total_steps: int = gin.REQUIRED,
    learning_rate: float = gin.REQUIRED,
    learning_rate_batch: int | None = None,
    seed: int = gin.REQUIRED,
    clip_norm: float | None = None,
    on_nonfinite: str = "stop",
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    color_jitter_share: float = 0.0,
    grey_share: float = 0.0,
    accumulation_steps: int = 1,
    steps_per_loop: int = 100,
    checkpoint_every_steps: int = 1000,
    keep_checkpoints: int = 3,
    eval_every_steps: int | None = None,
    quick_eval: bool = False,
    jit_compile: bool = False,
) -> None:
    """Trains to `total_steps`, going on from the newest checkpoint if there is one.

    SIGTERM and SIGINT save after the current step, and exit with 128 + their number.

    In the mode "profile" it only says what limits such a training, and learns nothing.

    Args:
      session: mode, folders and devices.
      build_model: a function of the number of classes, as @build_x2p1d.
      batch_size: clips or images in a step, over all replicas.
      total_steps: of the whole training.
      learning_rate: at its peak.
      learning_rate_batch: the batch for which `learning_rate` is stated: it grows with
        the batch in proportion (App. B.3 states a rate per core, and 4 clips a core).
        None for a rate that does not.
      seed: of every random draw; the same seed gives the same run.
      clip_norm: global norm to which gradients are clipped; None for no clipping.
      on_nonfinite: what a loss or gradient that is NaN or infinite does: "stop", or
        "skip" to leave that step out, and count it.
      mixup_alpha: mixes pairs of examples, shares drawn from Beta(alpha, alpha); 0 for
        none.
      cutmix_alpha: pastes a window of one into another, its area drawn likewise; with
        both set, each batch gets either.
      color_jitter_share: of the clips or images that get other colours, 0..1, before
        they are mixed.
      grey_share: of those that lose their colours, 0..1.
      accumulation_steps: micro-batches to a step.
      steps_per_loop: steps between progress lines; nothing is read back between.
      checkpoint_every_steps: rounded up to whole loops; the first is after the first
        loop, the last at the end.
      keep_checkpoints: newest ones that stay.
      eval_every_steps: in train_and_eval, besides the end; None for the end only.
        A checkpoint is saved before each evaluation.
      quick_eval: whether the evaluations before the end look at one view of a video,
        the centre, as `eval_quick/*`; the last one looks at all.
      jit_compile: XLA for forward and backward pass on CPU and GPU.

    Raises:
      ValueError: for what the user can mend: data, sizes, folders, a loss that is not
        finite.
    """
    strategy = session.strategy
    hosts = runtime.num_hosts(strategy)
    sessions.agree_on_checkpoint(session)
    if batch_size % strategy.num_replicas_in_sync:
        raise ValueError(
            f"train.batch_size={batch_size} does not divide into"
            f" {strategy.num_replicas_in_sync} replicas."
        )
    data = sessions.open_split(
        session, is_training=True, batch_size=batch_size // hosts, seed=seed
    )
    rate = optim.rate_of_batch(
        learning_rate,
        rate_batch=learning_rate_batch or batch_size,
        batch_size=batch_size,
    )
    is_profile = session.mode == "profile"
    schedule = (
        sessions.NEVER_USED if is_profile else optim.build_schedule(rate, total_steps)
    )
    model, optimizer = sessions.build(
        session, build_model, schedule, len(data.classes), seed
    )
    if jit_compile:
        _check_compilable(model, strategy)
    if not session.has_checkpoint and not is_profile:
        sessions.warm_start(model)
    iterator = iter(data.batches)
    loss = losses.build_loss()
    stop = stopping.Stop()
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=loss,
        strategy=strategy,
        iterator=iterator,
        seed=seed,
        clip_norm=clip_norm,
        on_nonfinite=on_nonfinite,
        mix=_build_mix(mixup_alpha, cutmix_alpha, color_jitter_share, grey_share),
        accumulation_steps=accumulation_steps,
        jit_compile=jit_compile,
        explain_data_error=data.explain,
        on_passed_over=data.describe_bad
        and report.PassedOver(
            session.checkpoint_dir / "bad_records.json", data.describe_bad
        ),
        on_first_batch=lambda batch: report.show_inputs(
            "train/inputs", batch, data.classes, step=optimizer.iterations
        ),
        should_stop=lambda: stop.is_wanted() and hosts == 1,  # more have to agree
    )
    evaluation = between = None
    if session.mode == "train_and_eval":
        test = sessions.open_split(session, is_training=False)
        evaluation = build_evaluator(session, test, model, optimizer, loss=loss)
        between = evaluation
        pauses = eval_every_steps and eval_every_steps < total_steps
        if quick_eval and pauses and test.num_views > 1:
            centre = sessions.open_split(
                session, is_training=False, num_clips=1, num_crops=1
            )
            between = build_evaluator(
                session, centre, model, optimizer, loss=loss, phase="eval_quick"
            )
    session.check_config()
    sessions.say_data(data, session)
    if not is_profile:
        sessions.remember(data, session)
    if is_profile:
        _profile(session, loop, data)
        return
    step = optimizer.iterations

    def steps_of_loop(step: int) -> int:
        if _is_any(stop.is_wanted(), strategy):
            raise stopping.Stopped
        return steps_per_loop - step % steps_per_loop  # lines as in an unbroken run

    with sessions.orbit_lines(session):
        controller = orbit.Controller(
            global_step=step,
            trainer=loop,
            evaluator=evaluation,
            strategy=strategy,
            train_actions=[report.TrainProgress(total_steps, step, noun=data.noun)]
            * session.is_chief,
            steps_per_loop=steps_of_loop,
            checkpoint_manager=checkpoint.manager(
                session.checkpoint_dir,
                model=model,
                optimizer=optimizer,
                iterator=None if session.data_service else iterator,
                classes=data.classes,
                every_steps=checkpoint_every_steps,
                keep=keep_checkpoints,
            ),
            summary_dir=sessions.summary_dir(session),
        )
        if step.numpy():
            report.say(f"train  going on from checkpoint ckpt-{step.numpy()}")
        with controller.summary_manager.summary_writer().as_default():
            report.show_config(int(step.numpy()))
        every = eval_every_steps if evaluation else None
        for until in _milestones(int(step.numpy()), total_steps, every):
            with stop.listening():
                try:
                    controller.train(until)  # saves: what is scored can be had again
                except stopping.Stopped:
                    controller.save_checkpoint()
                if stop.is_wanted():
                    report.say(
                        f"train  {stop.name}: stopped and saved as ckpt-{step.numpy()};"
                        " the same command goes on from there."
                    )
                    raise SystemExit(stop.exit_code)
            if evaluation:
                controller.evaluator = between if until < total_steps else evaluation
                controller.evaluate()
        if evaluation and not evaluation.has_run:  # trained to the end before
            controller.evaluate()


@gin.configurable
def evaluate(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
) -> None:
    """Evaluates the newest checkpoint in the model folder, or a warm start.

    Args:
      session: mode, folders and devices.
      build_model: the one it was trained with.

    Raises:
      ValueError: for a missing, incomplete or different checkpoint, or broken data.
    """
    data = sessions.open_split(session, is_training=False)
    model, optimizer = sessions.build(
        session, build_model, sessions.NEVER_USED, len(data.classes)
    )
    evaluation = build_evaluator(
        session, data, model, optimizer, loss=losses.build_loss()
    )
    if not session.has_checkpoint and sessions.warm_start(model, is_complete=True):
        session.check_config()
    else:
        session.check_config()
        checkpoint.restore_for_evaluation(
            session.model_dir, model=model, optimizer=optimizer, classes=data.classes
        )
        sessions.remember(data, session)
    with sessions.orbit_lines(session):
        orbit.Controller(
            global_step=optimizer.iterations,
            evaluator=evaluation,
            strategy=session.strategy,
            eval_summary_dir=sessions.summary_dir(session),
        ).evaluate()


@gin.configurable
def build_evaluator(
    session: sessions.Session,
    data: split.Split,
    model: tf_keras.Model,
    optimizer: tf_keras.optimizers.Optimizer,
    *,
    loss: losses.Loss,
    phase: str = "eval",
    metric: str = gin.REQUIRED,
    merge: str = "max",
    views_at_once: int = 1,
    jit_compile: bool = False,
) -> evaluator.Evaluator:
    """The evaluator of a recipe: every example of the split once, its views merged.

    Args:
      session: mode, folders and devices.
      data: the split, for one pass.
      model: built.
      optimizer: whose averaged weights are evaluated, if it averages them.
      loss: turns logits into scores.
      phase: begins the TensorBoard tags.
      metric: "map" for several labels an example, "top_k" for exactly one, "real" for
        ImageNet ReaL.
      merge: "max" or "mean" of the scores of an example's views.
      views_at_once: views of each example that the model sees at once: with the batch
        size of eval/clip_dataset, what bounds memory.  The devices hold batch_size x
        views_at_once clips, the host batch_size x all views, as uint8.
      jit_compile: XLA for the forward pass on CPU and GPU.

    Raises:
      ValueError: for another metric or merge, or a batch that does not divide.
    """
    sessions.check_eval_batch(data, session)
    writer = report.ResultWriter(
        session.model_dir,
        data,
        metric=metric,
        merge=merge,
        cost=_cost_of_view(model, data),
        phase=phase,
    )

    def on_result(evaluation: scores.Evaluation) -> None:
        if session.is_chief:
            step = int(optimizer.iterations.numpy())
            writer.write(evaluation, step=step)
            pixels, labels, maps = loop.look()
            if maps:  # the first TokenLearner's: later ones see mixed inputs (§6.4)
                first = next(iter(maps.values()))
                report.show_token_maps(
                    f"{phase}/token_maps",
                    pixels,
                    labels,
                    first,
                    data.classes,
                    step=step,
                )

    loop = evaluator.Evaluator(
        model,
        optimizer,
        loss=loss,
        strategy=session.strategy,
        data=data,
        metric=metric,
        merge=merge,
        views_at_once=views_at_once,
        phase=phase,
        jit_compile=jit_compile,
        on_progress=report.EvalProgress(),
        on_result=on_result,
    )
    return loop


@gin.configurable
def evaluate_fewshot(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    datasets: Sequence[tuple[str, str, str]] = gin.REQUIRED,
    shots: Sequence[int] = (1, 5, 10, 25),
    l2_regs: Sequence[float] = L2_REGS,
    endpoint: str = "pre_logits",
    jit_compile: bool = False,
) -> None:
    """Classifies the frozen features of a few images a class, on several data sets.

    Source: Section 3.4; ViT, arXiv 2010.11929, Section 4.1.
    Args:
      session: mode, folders and devices.
      build_model: the one that was trained.
      datasets: of each its name, and the splits to learn from and to test on.
      shots: images of a class to learn from.
      l2_regs: strengths of the regularisation; the one with the best mean over the data
        sets is reported.
      endpoint: of the model, [B, C]: the features.
      jit_compile: XLA for the forward pass on CPU and GPU.

    Raises:
      ValueError: for a missing checkpoint, a missing data set, or classes with fewer
        images than shots.
    """
    if not session.has_checkpoint:
        # A warm start brings features; the classifier is not asked.
        model, optimizer = sessions.build(
            session, build_model, sessions.NEVER_USED, num_classes=1
        )
    if session.has_checkpoint or not sessions.warm_start(model):
        model, optimizer = sessions.restore_any(session, build_model)
    forward = evaluator.ForwardPass(
        model,
        session.strategy,
        output=lambda logits, endpoints: endpoints[endpoint],
        jit_compile=jit_compile,
        on_progress=report.EvalProgress(),
    )

    def features(name: str, part: str) -> tuple[np.ndarray, np.ndarray, int]:
        data = sessions.open_split(session, is_training=False, dataset=name, split=part)
        sessions.check_eval_batch(data, session)
        with optim.averaged_weights(optimizer, model):
            rows = forward.run(data)
        order = np.argsort(rows["index"])
        labels = rows["labels"][order].argmax(axis=1)
        return rows["outputs"][order, 0], labels, len(data.classes)

    found = {}
    for name, train_split, test_split in datasets:
        train_features, train_labels, num_classes = features(name, train_split)
        test_features, test_labels, _ = features(name, test_split)
        found[f"{name} {train_split}"] = fewshot.accuracies(
            train_features,
            train_labels,
            test_features,
            test_labels,
            num_classes=num_classes,
            shots=shots,
            l2_regs=l2_regs,
        )
    session.check_config()
    if session.is_chief:
        report.write_fewshot(
            session.model_dir,
            found,
            shots=shots,
            l2_regs=l2_regs,
            best=fewshot.best_l2(list(found.values()), l2_regs),
            step=int(optimizer.iterations.numpy()),
        )


@gin.configurable
def save_npz(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    style: str = "scenic",
) -> None:
    """Writes the newest checkpoint's weights under the authors' names.

    Averaged weights, if the optimizer averages them, as in evaluation.

    Args:
      session: mode, folders and devices.
      build_model: the one that was trained.
      style: of the names: "scenic", "vision_transformer" or "released".

    Raises:
      ValueError: for a missing checkpoint, or another style.
    """
    model, optimizer = sessions.restore_any(session, build_model)
    session.check_config()
    path = session.model_dir / f"weights-{int(optimizer.iterations.numpy())}.npz"
    with optim.averaged_weights(optimizer, model):
        checkpoint.save_npz(path, model, style=style)
    report.say(f"weights  {len(model.variables)} variables  -> {path}")


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


def _profile(
    session: sessions.Session, loop: trainer.Trainer, data: split.Split
) -> None:
    """Says what limits the training that `loop` would run."""
    try:
        found = profiling.profile(loop, session.strategy)
    except tf.errors.OpError as error:
        raise ValueError(data.explain(error)) from error
    if session.is_chief:
        report.write_profile(session.model_dir, found, noun=data.noun)


def _is_any(flag: bool, strategy: tf.distribute.Strategy) -> bool:
    """Whether it is so on any host; all of them have to ask."""
    if runtime.num_hosts(strategy) == 1:
        return flag
    mine = tf.constant([int(flag)])
    flags = strategy.experimental_distribute_values_from_function(lambda _: mine)
    return bool(np.any(strategy.gather(flags, axis=0)))


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


def _cost_of_view(model: tf_keras.Model, data: split.Split) -> dict[str, Any]:
    """What goes into a result; a model that cannot be counted is evaluated as well."""
    shape = data.batches.element_spec["pixels"].shape[2:]
    try:
        return cost.of_view(cost.count(model, (1, *shape)))
    except ValueError as error:
        report.say(f"GFLOPs are not counted: {error}")
        return {}


def _build_mix(
    mixup_alpha: float, cutmix_alpha: float, jitter_share: float, grey_share: float
) -> Callable | None:
    """What a batch goes through on the device, by draws.

    Raises:
      ValueError: for a share out of range.
    """
    for name, share in (
        ("color_jitter_share", jitter_share),
        ("grey_share", grey_share),
    ):
        if not 0 <= share <= 1:
            raise ValueError(f"train.{name} must be in 0..1, got {share}.")
    has_color, has_mix = jitter_share or grey_share, mixup_alpha or cutmix_alpha
    if not has_color and not has_mix:
        return None

    def mix(pixels, labels, *, seed):
        if has_color:
            pixels = color.random_color(
                pixels,
                seed=tf.random.fold_in(seed, COLOR_DRAW),
                jitter_share=jitter_share,
                grey_share=grey_share,
            )
        if has_mix:
            pixels, labels = augment.mixup_cutmix(
                pixels,
                labels,
                seed=seed,
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
            )
        return pixels, labels

    return mix
