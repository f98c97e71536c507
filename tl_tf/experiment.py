"""The composition root: which function each mode is; a few of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import gin
import numpy as np
import tensorflow as tf
import tf_keras

from tl_tf import (
    checkpoint,
    demo,
    evaluating,
    evaluator,
    export,
    fewshot,
    inspection,
    optim,
    predict,
    report,
    results,
    runtime,
    token_pictures,
    training,
)
from tl_tf import session as sessions

# Of few-shot classification, as in the authors' code.
L2_REGS = (2.0**-6, 2.0**-2, 2.0**2, 2.0**6, 2.0**9, 2.0**10)


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
        inspection.show()
        return
    strategy = runtime.configure_runtime(tpu)
    session = sessions.Session(mode, model_dir, data_dir, strategy, **options)
    if session.needs_data:
        build_missing_data(data_dir)
    modes = {
        "eval": evaluating.evaluate,
        "fewshot": evaluate_fewshot,
        "save_npz": save_npz,
        "export": export.export,
        "predict": predict.predict,
        "visualize": token_pictures.visualize,
        "demo": demo.demo,
    }
    with runtime.explain_lost_hosts(strategy):
        modes.get(mode, training.train)(session)


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
        results.write_fewshot(
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
