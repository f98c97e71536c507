"""Evaluation of a recipe: every example of the split once, its views merged."""

from collections.abc import Callable
from typing import Any

import gin
import orbit
import tf_keras

from tl_tf import (
    checkpoint,
    cost,
    evaluator,
    losses,
    report,
    results,
    scores,
    summaries,
)
from tl_tf import session as sessions
from tl_tf.inputs import split


@gin.configurable
def evaluate(
    session: sessions.Session,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
) -> None:
    """Evaluates a checkpoint in the model folder, by default the newest; a warm start.

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
            session.model_dir,
            model=model,
            optimizer=optimizer,
            classes=data.classes,
            which=session.checkpoint,
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
    describe: Callable[[dict[str, float]], dict[str, Any]] = lambda values: {},
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
      describe: of what an evaluation measured: what else its JSON says.
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
    writer = results.ResultWriter(
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
            more = describe(evaluation.values)
            writer.write(evaluation, step=step, more=more)
            pixels, labels, maps = loop.look()
            if maps:  # the first TokenLearner's: later ones see mixed inputs (§6.4)
                first = next(iter(maps.values()))
                summaries.show_token_maps(
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


def _cost_of_view(model: tf_keras.Model, data: split.Split) -> dict[str, Any]:
    """What goes into a result; a model that cannot be counted is evaluated as well."""
    shape = data.batches.element_spec["pixels"].shape[2:]
    try:
        return cost.of_view(cost.count(model, (1, *shape)))
    except ValueError as error:
        report.say(f"GFLOPs are not counted: {error}")
        return {}
