"""Training: to its end, as a rehearsal of that, or to find what limits or suits it."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import (
    best,
    checkpoint,
    dry_run,
    evaluating,
    find_lr,
    losses,
    optim,
    profiling,
    report,
    results,
    runtime,
    stopping,
    summaries,
    trainer,
)
from tl_tf import session as sessions
from tl_tf.inputs import augment, color, split

COLOR_DRAW = 1  # folded into the seed with which examples are mixed
RANGE_TEST_SECONDS = 5.0  # between its progress lines


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
    best_metric: str | None = None,
    patience_evals: int | None = None,
    jit_compile: bool = False,
) -> None:
    """Trains to `total_steps`, going on from the newest checkpoint if there is one.

    SIGTERM and SIGINT save after the current step, and exit with 128 + their number.

    In the mode "profile" it only says what limits such a training, in "find_lr" which
    rate suits it, and in a dry run what it will need: what was learnt is not kept.

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
      best_metric: the evaluation's value, as "map", "top1" or "loss", by which the best
        checkpoint is kept in the run's folder `best`; None keeps none. With
        `quick_eval` the quick evaluations are compared, of which the end has one too.
      patience_evals: evaluations in a row without a better `best_metric` after which
        training ends; None for never.
      jit_compile: XLA for forward and backward pass on CPU and GPU.

    Raises:
      ValueError: for what the user can mend: data, sizes, folders, a loss that is not
        finite.
    """
    strategy = session.strategy
    hosts = runtime.num_hosts(strategy)
    is_learning = session.mode in ("train", "train_and_eval")
    if is_learning:
        _check_best(session, best_metric, patience_evals, eval_every_steps)
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
    schedule = sessions.NEVER_USED
    if is_learning:
        schedule = optim.build_schedule(rate, total_steps)
    elif session.mode == "find_lr":
        range_test = find_lr.find_lr(rate)
        schedule = range_test.schedule
    model, optimizer = sessions.build(
        session, build_model, schedule, len(data.classes), seed
    )
    if jit_compile:
        _check_compilable(model, strategy)
    goes_on = is_learning and session.has_checkpoint
    if not goes_on and session.mode != "profile":
        sessions.warm_start(model)
    iterator = iter(data.batches)
    loss = losses.build_loss()
    stop = stopping.Stop()
    step = optimizer.iterations
    progress = report.TrainProgress(total_steps, step, noun=data.noun)
    callbacks = {"on_step": progress.before_step} if session.is_chief else {}
    if is_learning and not session.dry_run:
        callbacks["on_first_batch"] = lambda batch: summaries.show_inputs(
            "train/inputs", batch, data.classes, step=step
        )
        callbacks["on_passed_over"] = data.describe_bad and report.PassedOver(
            session.checkpoint_dir / "bad_records.json", data.describe_bad
        )
    loop = trainer.Trainer(
        model,
        optimizer,
        loss=loss,
        strategy=strategy,
        iterator=iterator,
        seed=seed,
        clip_norm=clip_norm,
        on_nonfinite="stop" if session.mode == "find_lr" else on_nonfinite,
        mix=_build_mix(mixup_alpha, cutmix_alpha, color_jitter_share, grey_share),
        accumulation_steps=accumulation_steps,
        jit_compile=jit_compile,
        explain_data_error=data.explain,
        should_stop=lambda: stop.is_wanted() and hosts == 1,  # more have to agree
        **callbacks,
    )
    evaluation = quick = judge = None

    def describe(values: dict[str, float], *, is_judged: bool) -> dict[str, Any]:
        if judge is None:
            return {}
        return {"best": judge.facts(int(step.numpy()), values if is_judged else None)}

    if session.mode == "train_and_eval":
        test = sessions.open_split(session, is_training=False)
        has_pauses = eval_every_steps and eval_every_steps < total_steps
        is_quick = quick_eval and has_pauses and test.num_views > 1
        evaluation = evaluating.build_evaluator(
            session,
            test,
            model,
            optimizer,
            loss=loss,
            describe=functools.partial(describe, is_judged=not is_quick),
        )
        if is_quick:
            centre = sessions.open_split(
                session, is_training=False, num_clips=1, num_crops=1
            )
            quick = evaluating.build_evaluator(
                session,
                centre,
                model,
                optimizer,
                loss=loss,
                phase="eval_quick",
                describe=functools.partial(describe, is_judged=True),
            )
        if best_metric is not None:
            judge = best.Best(
                session.checkpoint_dir / best.FOLDER,
                best_metric,
                known=evaluation.measures,
                patience=patience_evals,
            )
    session.check_config()
    sessions.say_data(data, session)
    if session.mode == "profile":
        _profile(session, loop, data)
        return
    if session.mode == "find_lr":
        _find_lr(session, loop, range_test, rate=rate, per_rate=learning_rate / rate)
        return
    every = eval_every_steps if evaluation else None

    def manager_of(folder: Path) -> tf.train.CheckpointManager:
        return checkpoint.manager(
            folder,
            model=model,
            optimizer=optimizer,
            iterator=None if session.data_service else iterator,
            classes=data.classes,
            every_steps=checkpoint_every_steps,
            keep=keep_checkpoints,
        )

    if session.dry_run:
        with strategy.scope():
            manager_of(session.checkpoint_dir).restore_or_initialize()
        start = int(step.numpy())
        pauses = len(_milestones(start, total_steps, every))
        evaluations = []
        if quick:
            times = pauses - (judge is None)
            evaluations += [dry_run.Evaluations("quick eval", quick, centre, times)]
        if evaluation:
            times = 1 if quick else max(1, pauses)
            evaluations += [dry_run.Evaluations("evaluation", evaluation, test, times)]
        saves = pauses + (total_steps - start) // checkpoint_every_steps
        plan = dry_run.Plan(
            start=start,
            total_steps=total_steps,
            batch_size=batch_size,
            device_batch=batch_size
            // strategy.num_replicas_in_sync
            // accumulation_steps,
            noun=data.noun,
            num_loops=-(-(total_steps - start) // steps_per_loop),
            num_checkpoints=saves,
            kept_checkpoints=min(keep_checkpoints, saves) + (judge is not None),
            evaluations=evaluations,
        )
        needs = dry_run.measure(
            plan, loop, make_manager=manager_of, model_dir=session.model_dir
        )
        if session.is_chief:
            report.say(dry_run.table(plan, needs, model_dir=session.model_dir))
        return
    sessions.remember(data, session)

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
            train_actions=[progress] * session.is_chief,
            steps_per_loop=steps_of_loop,
            checkpoint_manager=manager_of(session.checkpoint_dir),
            summary_dir=sessions.summary_dir(session),
        )
        start = int(step.numpy())
        if start:
            report.say(f"train  going on from checkpoint ckpt-{start}")
        with controller.summary_manager.summary_writer().as_default():
            summaries.show_config(start)
            summaries.show_hparams()
        # What a killed run has scored and not yet judged is scored again.
        is_due = judge is not None and _is_any(not judge.start(start), strategy)
        for until in _milestones(start - is_due, total_steps, every):
            if judge and _is_any(judge.is_over, strategy):
                report.say(
                    f"train  stopped at step {step.numpy()} of {total_steps}:"
                    f" {judge.evals_ago} evaluations in a row without a better"
                    f" {best_metric} (train.patience_evals)"
                )
                break
            if until > start:
                _train_until(until, controller, stop)
            if evaluation:
                is_last = until == total_steps and judge is None
                controller.evaluator = evaluation if is_last else quick or evaluation
                values = controller.evaluate()
            if judge:
                _judge(session, controller, judge, values)
        if evaluation and not evaluation.has_run:  # of all views, or trained before
            controller.evaluator = evaluation
            controller.evaluate()


def _train_until(until: int, controller: orbit.Controller, stop: stopping.Stop) -> None:
    """Trains to a step and saves there, or where a signal ends the process."""
    with stop.listening():
        try:
            controller.train(until)  # saves: what is scored can be had again
        except stopping.Stopped:
            controller.save_checkpoint()
        if _is_any(stop.is_wanted(), controller.strategy):
            step = controller.global_step.numpy()
            report.say(
                f"train  {stop.name}: stopped and saved as ckpt-{step};"
                " the same command goes on from there."
            )
            raise SystemExit(stop.exit_code)


def _profile(
    session: sessions.Session, loop: trainer.Trainer, data: split.Split
) -> None:
    """Says what limits the training that `loop` would run."""
    try:
        found = profiling.profile(loop, session.strategy)
    except split.ERRORS as error:
        raise ValueError(data.explain(error)) from error
    if session.is_chief:
        results.write_profile(session.model_dir, found, noun=data.noun)


def _find_lr(
    session: sessions.Session,
    loop: trainer.Trainer,
    test: find_lr.RangeTest,
    *,
    rate: float,
    per_rate: float,
) -> None:
    """Says which learning rate suits the training that `loop` would run."""
    last = time.perf_counter()

    def progress(done: int, tried: float, loss: float) -> None:
        nonlocal last
        if time.perf_counter() - last > RANGE_TEST_SECONDS and session.is_chief:
            last = time.perf_counter()
            report.say(
                f"find_lr  step {done}/{test.num_steps}  rate {tried:.2g}"
                f"  loss {loss:.4f}"
            )

    found = test.run(loop, on_step=progress)
    if session.is_chief:
        title = f"Learning rate range test, {session.model_dir.name}"
        find_lr.write(
            session.model_dir, found, learning_rate=rate, per_rate=per_rate, title=title
        )


def _judge(
    session: sessions.Session,
    controller: orbit.Controller,
    judge: best.Best,
    values: dict[str, float],
) -> None:
    """Keeps the checkpoint that was evaluated, if it is the best so far."""
    step = int(controller.global_step.numpy())
    values = {name.rpartition("/")[2]: value for name, value in values.items()}
    judge.add(step, values, session.checkpoint_dir / f"ckpt-{step}")
    if session.is_chief:
        with controller.summary_manager.summary_writer().as_default():
            summaries.show_best(judge, step=step)


def _check_best(
    session: sessions.Session,
    best_metric: str | None,
    patience_evals: int | None,
    eval_every_steps: int | None,
) -> None:
    """Refuses to look for the best of evaluations that are not made.

    Raises:
      ValueError: naming what is missing.
    """
    if best_metric is None:
        if patience_evals is not None:
            raise ValueError(
                "train.patience_evals wants train.best_metric, as 'map': by which value"
                " an evaluation is better."
            )
    elif session.mode != "train_and_eval" or eval_every_steps is None:
        raise ValueError(
            f"train.best_metric={best_metric!r} chooses among evaluations: it wants"
            " --mode=train_and_eval and train.eval_every_steps."
        )


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
