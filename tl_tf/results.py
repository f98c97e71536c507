"""What a run has found: a line and a JSON a result, scores, tables, pictures."""

import dataclasses
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from tl_tf import (
    config,
    cost,
    files,
    metrics,
    profiling,
    report,
    scores,
    summaries,
    visualize,
)
from tl_tf.inputs import split

DRAWN_CLASSES = 1000  # more make no picture: a matrix of 21,841 classes takes 4 GB
CONFUSED_PAIRS = 20


@dataclasses.dataclass(frozen=True)
class ResultWriter:
    """Writes evaluations: a line, `results/<split>-<step>.json`, scores, pictures.

    Attributes:
      model_dir: folder of the run.
      data: the split that is evaluated.
      metric: of scores.METRICS.
      merge: of scores.MERGES.
      cost: of one view, by `cost.of_view`.
      phase: begins the TensorBoard tags; "eval_quick" marks the files as well.
    """

    model_dir: Path
    data: split.Split
    metric: str
    merge: str
    cost: dict[str, Any]
    phase: str = "eval"

    def write(
        self,
        evaluation: scores.Evaluation,
        *,
        step: int,
        more: dict[str, Any] | None = None,
    ) -> Path:
        """Writes and prints everything of one evaluation.

        Args:
          evaluation: of all views.
          step: of the training.
          more: what else the JSON says.

        Returns:
          The JSON's path.
        """
        data = self.data
        about = {
            "dataset": data.dataset,
            "split": data.split,
            "facts": data.facts,
            "noun": data.noun,
            "step": step,
            "metric": self.metric,
            "coverage": data.coverage,
            "cost": self.cost,
            "config_checksum": config.checksum(),
            "git_revision": git_revision(),
            "checkpoint": f"ckpt-{step}",
            **(more or {}),
        }
        folder = self.model_dir / "results"
        folder.mkdir(parents=True, exist_ok=True)
        quick = "-quick" if self.phase == "eval_quick" else ""
        path = folder / f"{file_name(data)}{quick}-{step}.json"
        with files.whole(path.with_suffix(".scores.npz")) as temporary:
            with temporary.open("wb") as file:
                evaluation.views.save(file)
        table, picture = write_result(path, evaluation, about, merge=self.merge)
        if table:
            code = "\n".join("    " + line for line in table.splitlines())
            tf.summary.text(f"{self.phase}/by_class", code, step=step)
        if picture is not None:
            summaries.show_images(f"{self.phase}/confusion", [picture], step=step)
        return path


def write_result(
    path: Path, evaluation: scores.Evaluation, about: dict[str, Any], *, merge: str
) -> tuple[str, np.ndarray | None]:
    """Writes a JSON, a table by class and a picture, and prints a line.

    Args:
      path: of the JSON; the others lie beside it.
      evaluation: of all views or of some.
      about: what the JSON holds besides: what was evaluated, and by what.
      merge: by which the views were merged.

    Returns:
      The table by class, "" if there is none, and the confusion matrix as a picture
      uint8 [height, width, 3], None if there is none.
    """
    views = evaluation.views
    noun, coverage = about["noun"], about["coverage"]
    where = f"{about['dataset']}/{about['split']}"
    num_views = len(views.view_clips)
    by_class, table = _by_class(evaluation, noun)
    result = {
        **about,
        "metrics": evaluation.values,
        f"num_{noun}": len(views.ids),
        "views": {
            "views": num_views,
            "clips": views.num_clips,
            "crops": views.num_crops,
            "merge": merge,
        },
        "cost": cost.of_views(about["cost"], num_views),
        **by_class,
    }
    files.write_json(path, result)
    values = "  ".join(f"{k} {v:.4f}" for k, v in evaluation.values.items())
    many = f" x {views.num_clips} x {views.num_crops} views" if num_views > 1 else ""
    report.say(
        f"eval   step {about['step']}  {where}: {values}"
        f"  ({len(views.ids)} {noun}{many}, coverage {coverage['share']:.1%})"
        f"  -> {path}"
    )
    if about["cost"]:
        report.say(
            "       " + cost.views_line(about["cost"], num_views, noun=noun[:-1])
        )
    skipped = len(views.skipped_rows)
    if skipped:
        fate = "are left out" if evaluation.ranking is None else "count as ranked last"
        report.say(f"       {skipped} {noun} could not be built and {fate}.")
    if table:
        files.write(path.with_suffix(".txt"), table + "\n")
        if len(views.classes) <= 20:
            report.say(table)
    if evaluation.ranking is not None and evaluation.ranking.classes_without_positive:
        empty = len(evaluation.ranking.classes_without_positive)
        report.say(
            f"       {empty} classes have no positive and are left out of the mean."
        )
    picture = None
    if evaluation.accuracy is not None and len(views.classes) <= DRAWN_CLASSES:
        picture = visualize.confusion_picture(
            metrics.confusion_matrix(evaluation.accuracy),
            views.classes.tolist(),
            title=f"{where}, step {about['step']}\n{values}",
        )
        png = tf.io.encode_png(picture).numpy()
        files.write(path.with_suffix(".png"), png)
    return table, picture


def _by_class(evaluation: scores.Evaluation, noun: str) -> tuple[dict[str, Any], str]:
    """What a JSON holds of the classes, and a table for people."""
    names = evaluation.views.classes.tolist()
    ranking, accuracy = evaluation.ranking, evaluation.accuracy
    if ranking is not None:
        pairs = list(zip(names, ranking.per_class, strict=True))
        return {
            "average_precision": {n: float(ap) for n, ap in pairs if not np.isnan(ap)},
            "classes_without_positive": [n for n, ap in pairs if np.isnan(ap)],
        }, class_table(names, ranking.per_class, ranking.positives, value="AP")
    if accuracy is None:
        return {}, ""
    pairs = list(zip(names, accuracy.per_class, strict=True))
    confused = [
        {"class": names[k], "taken_for": names[other], noun: count}
        for k, other, count in metrics.most_confused(accuracy, CONFUSED_PAIRS)
    ]
    lines = [
        f"{pair[noun]:6d} {noun} of {pair['class']!r} taken for {pair['taken_for']!r}"
        for pair in confused
    ]
    table = class_table(names, accuracy.per_class, accuracy.positives, value="right")
    return {
        "accuracy_by_class": {n: float(a) for n, a in pairs if not np.isnan(a)},
        "most_confused": confused,
    }, "\n".join([table, *["most confused:"] * bool(lines), *lines])


def write_fewshot(
    model_dir: Path,
    accuracies: dict[str, np.ndarray],
    *,
    shots: Sequence[int],
    l2_regs: Sequence[float],
    best: np.ndarray,
    step: int,
) -> Path:
    """Writes few-shot accuracies: a table, `results/fewshot-<step>.json`, TensorBoard.

    Args:
      model_dir: folder of the run.
      accuracies: of each data set, [shots, l2_regs].
      shots: images of a class that were learnt from.
      l2_regs: strengths of the regularisation.
      best: of each number of shots, the strength that is reported.
      step: of the training.
    """
    columns = [list(l2_regs).index(l2) for l2 in best]
    rows = {
        name: [float(found[i, column]) for i, column in enumerate(columns)]
        for name, found in accuracies.items()
    }
    result = {
        "step": step,
        "shots": list(shots),
        "l2_regs": list(l2_regs),
        "best_l2": [float(l2) for l2 in best],
        "accuracy": rows,
        "mean": np.mean(list(rows.values()), axis=0).tolist(),
        "accuracy_by_l2": {name: a.tolist() for name, a in accuracies.items()},
    }
    path = model_dir / "results" / f"fewshot-{step}.json"
    write_json(path, result)
    width = max(len(name) for name in (*rows, "data set"))
    report.say(f"{'data set':{width}}" + "".join(f"  {n:3d} shots" for n in shots))
    means = {"mean": result["mean"]} if len(rows) > 1 else {}
    for name, values in {**rows, **means}.items():
        report.say(f"{name:{width}}" + "".join(f"  {v:9.4f}" for v in values))
    report.say(
        f"{'l2':{width}}" + "".join(f"  {v:9.4g}" for v in best) + f"  -> {path}"
    )
    writer = tf.summary.create_file_writer(str(model_dir / "tensorboard"))
    with writer.as_default(step=step):
        for name, values in rows.items():
            for n, value in zip(shots, values, strict=True):
                tf.summary.scalar(f"fewshot/{name}_{n}", value)
    writer.close()
    return path


def write_profile(model_dir: Path, found: profiling.Profile, *, noun: str) -> Path:
    """Says in a line what limits training, and writes `results/profile.json`.

    Args:
      model_dir: folder of the run.
      found: the measurements.
      noun: what an example is.
    """
    path = model_dir / "results" / "profile.json"
    result = {"limit": found.limit, **dataclasses.asdict(found), "noun": noun}
    write_json(path, result)
    fast, slow = (
        ("compute", "input") if found.limit == "input" else ("input", "compute")
    )
    report.say(
        f"profile  {slow} limits: {getattr(found, slow):.3g} {noun}/s against"
        f" {getattr(found, fast):.3g} of {fast}; together {found.together:.3g},"
        f" and a step waits {found.wait_share:.0%} of its time  -> {path}"
    )
    return path


def write_config(model_dir: Path) -> None:
    """Writes the parsed and the operative configuration beside the checkpoints."""
    model_dir.mkdir(parents=True, exist_ok=True)
    files.write(model_dir / "config.gin", gin.config_str())
    files.write(model_dir / "operative_config.gin", gin.operative_config_str())


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes a result with the configuration's checksum and the code's revision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        **result,
        "config_checksum": config.checksum(),
        "git_revision": git_revision(),
    }
    files.write_json(path, result)


def file_name(data: split.Split) -> str:
    """A split's name as a file may bear it: `train[:10%]` becomes `train_10`."""
    return "_".join(re.findall(r"[\w.-]+", data.split))


def class_table(
    names: list[str], per_class: np.ndarray, positives, *, value: str
) -> str:
    """A table of `value` by class, best first; classes without positives last."""
    order = np.argsort(np.where(np.isnan(per_class), np.inf, -per_class), kind="stable")
    width = max(len(name) for name in (*names, "class"))
    lines = [f"{'class':{width}}  {value:>7}  positives"]
    for k in order:
        shown = "      –" if np.isnan(per_class[k]) else f"{per_class[k]:7.4f}"
        lines.append(f"{names[k]:{width}}  {shown}  {int(positives[k]):9d}")
    return "\n".join(lines)


def git_revision() -> str | None:
    """Revision of this code, `-dirty` if changed since; None outside a checkout."""
    if not (config.ROOT / ".git").exists():  # git would look into the folders above
        return None
    command = ["git", "-C", str(config.ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
