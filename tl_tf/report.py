"""What a run tells people: progress lines, one line and one JSON a result, pictures."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gin
import numpy as np
import tensorflow as tf

from tl_tf import (
    best,
    config,
    cost,
    files,
    hparams,
    metrics,
    profiling,
    scores,
    visualize,
)
from tl_tf.inputs import split

SHOWN_EXAMPLES = 2
DRAWN_CLASSES = 1000  # more make no picture: a matrix of 21,841 classes takes 4 GB
CONFUSED_PAIRS = 20


def say(text: str) -> None:
    """Prints a line for the user, past the file that takes Orbit's own lines."""
    print(text, file=sys.__stdout__, flush=True)


def time_left(seconds: float) -> str:
    """A duration for people: `45s`, `12m30s`, `3h05m`."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds // 60 % 60:02d}m"


class TrainProgress:
    """An Orbit action: one line after each loop of training steps.

    A long loop, and the first step, which is traced, give signs of life as well.
    """

    EVERY_SECONDS = 30.0

    def __init__(self, total_steps: int, step: tf.Variable, *, noun: str):
        self._total_steps = total_steps
        self._noun = noun
        self._step = step
        self._first_step: int | None = None
        self._start = 0.0
        self._last_line: float | None = None
        self._is_traced = False
        self._loop = (0, 0, 0.0)  # its first step; from how many on it is timed, when

    def before_step(self, done: int, of: int) -> None:
        """Called before each step of a loop with how many of them it has done."""
        now = time.perf_counter()
        if done == 0:  # only now: within a loop, nothing is read from a device
            self._loop = int(self._step.numpy()), 0, now
            if self._last_line is not None:  # there may have been an evaluation
                self._last_line = now
        elif not self._is_traced:
            self._is_traced = True
            self._loop = self._loop[0], done, now
        first, timed_from, start = self._loop
        if self._last_line is None:
            say("train  tracing and compiling the first step: some take minutes")
            self._last_line = now
        elif done > timed_from and now - self._last_line > self.EVERY_SECONDS:
            say(
                f"train  at step {first + done},"
                f" {(now - start) / (done - timed_from):.2g} s each;"
                f" the loss comes with step {first + of}"
            )
            self._last_line = now

    def __call__(self, output: dict[str, Any]) -> None:
        """Prints step, loss, rate, input wait and time left."""
        self._last_line = time.perf_counter()
        step = int(self._step.numpy())
        left = ""
        if self._first_step is None:  # the first loop holds tracing: no rate yet
            self._first_step, self._start = step, time.perf_counter()
        elif step > self._first_step:
            rate = (time.perf_counter() - self._start) / (step - self._first_step)
            left = f"  {time_left(rate * (self._total_steps - step))} left"
        skipped = output.get("train/skipped_steps", 0)
        if skipped:
            left += f"  {skipped} skipped: not finite"
        width = len(str(self._total_steps))
        say(
            f"train  step {step:{width}d}/{self._total_steps}"
            f"  loss {output['train/loss']:.4f}"
            f"  rate {output['train/learning_rate']:.4g}"
            f"  {output['input/examples_per_second']:.3g} {self._noun}/s"
            f"  input wait {output['input/wait_share']:.0%}{left}"
        )


class EvalProgress:
    """Called after each evaluation batch; prints a line every few seconds."""

    EVERY_SECONDS = 10.0

    def __init__(self):
        self._start = self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Prints batches done and time left."""
        now = time.perf_counter()
        if done == 0:
            self._start = self._last = now
        elif now - self._last > self.EVERY_SECONDS and done < total:
            self._last = now
            left = (now - self._start) / done * (total - done)
            say(f"eval   batch {done}/{total}  {time_left(left)} left")


class PassedOver:
    """Names the records that training passed over, each once, and counts them.

    Args:
      path: of a JSON of their descriptions, which outlives a restart.
      describe: of a shard and a record: what is wrong with it.
    """

    def __init__(self, path: Path, describe: Callable[[int, int], str]):
        self._path, self._describe = path, describe
        self._found: dict[str, str] = {}
        if path.is_file():
            self._found = json.loads(path.read_text(encoding="utf-8"))

    def __call__(self, passed_over: dict[str, tf.Tensor]) -> dict[str, float]:
        """Takes what passing.drop_failing tells; returns TensorBoard tags and values.

        Of more than it names at a time, the rest is counted alone.
        """
        new = {}
        for shard, record in passed_over["places"][-1].numpy().tolist():
            key = f"{shard}-{record}"
            if shard >= 0 and key not in self._found and key not in new:
                new[key] = self._describe(shard, record)
                say(f"input  passed over {new[key]}")
        if new:
            self._found |= new
            text = json.dumps(self._found, indent=1, ensure_ascii=False) + "\n"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write(self._path, text)
        return {
            "input/bad_records": len(self._found),
            "input/passed_over": int(passed_over["count"][-1]),
        }


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
            _images(f"{self.phase}/confusion", [picture], step=step)
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
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    files.write(path, text)
    values = "  ".join(f"{k} {v:.4f}" for k, v in evaluation.values.items())
    many = f" x {views.num_clips} x {views.num_crops} views" if num_views > 1 else ""
    say(
        f"eval   step {about['step']}  {where}: {values}"
        f"  ({len(views.ids)} {noun}{many}, coverage {coverage['share']:.1%})"
        f"  -> {path}"
    )
    if about["cost"]:
        say("       " + cost.views_line(about["cost"], num_views, noun=noun[:-1]))
    skipped = len(views.skipped_rows)
    if skipped:
        fate = "are left out" if evaluation.ranking is None else "count as ranked last"
        say(f"       {skipped} {noun} could not be built and {fate}.")
    if table:
        files.write(path.with_suffix(".txt"), table + "\n")
        if len(views.classes) <= 20:
            say(table)
    if evaluation.ranking is not None and evaluation.ranking.classes_without_positive:
        empty = len(evaluation.ranking.classes_without_positive)
        say(f"       {empty} classes have no positive and are left out of the mean.")
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
    say(f"{'data set':{width}}" + "".join(f"  {n:3d} shots" for n in shots))
    means = {"mean": result["mean"]} if len(rows) > 1 else {}
    for name, values in {**rows, **means}.items():
        say(f"{name:{width}}" + "".join(f"  {v:9.4f}" for v in values))
    say(f"{'l2':{width}}" + "".join(f"  {v:9.4g}" for v in best) + f"  -> {path}")
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
    say(
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
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    files.write(path, text)


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


def show_inputs(tag: str, batch: dict[str, tf.Tensor], classes, *, step: int) -> None:
    """Sends strips of input frames, or images, with their labels to TensorBoard.

    Args:
      tag: as `train/inputs`.
      batch: pixels uint8 [B, T, H, W, 3] or [B, H, W, 3], labels [B, K].
      classes: names, in the order of the labels.
      step: of the training.
    """
    strips = [
        visualize.frame_strip(frames, title=_label_text(labels, classes))
        for frames, labels in zip(
            _with_time(batch["pixels"][:SHOWN_EXAMPLES].numpy()),
            batch["labels"][:SHOWN_EXAMPLES].numpy(),
            strict=True,
        )
    ]
    _images(tag, strips, step=step)


def show_token_maps(
    tag: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    maps: np.ndarray,
    classes,
    *,
    step: int,
) -> None:
    """Sends the token maps over their frames to TensorBoard.

    Args:
      tag: as `eval/token_maps`.
      pixels: uint8 [B, T, H, W, 3] or [B, H, W, 3].
      labels: [B, K].
      maps: [b, T', h, w, S] of the first TokenLearner, for the first b <= B.
      classes: names, in the order of the labels.
      step: of the training.
    """
    shown = maps[:SHOWN_EXAMPLES]
    sheets = [
        visualize.token_map_sheet(f, m, title=_label_text(k, classes))
        for f, k, m in zip(
            _with_time(pixels[: len(shown)]),
            labels[: len(shown)],
            shown,
            strict=True,
        )
    ]
    _images(tag, sheets, step=step)


def show_config(step: int) -> None:
    """Sends the parsed configuration to TensorBoard as text."""
    text = "\n".join("    " + line for line in gin.config_str().splitlines())
    tf.summary.text("config", text, step=step)


def show_hparams() -> None:
    """Sends the recipe's bindings to TensorBoard's HParams tab.

    It shows them beside the last value of every scalar of the same run, as eval/map.
    """
    from tensorboard.plugins.hparams import api

    api.hparams(hparams.bound())


def show_best(found: best.Best, *, step: int) -> None:
    """Says which evaluation was the best so far, on screen and in TensorBoard.

    Args:
      found: after the evaluation at `step`.
      step: of the training.
    """
    ago = found.evals_ago
    where = f", {ago} evaluation{'s' * (ago > 1)} ago" if ago else ""
    say(
        f"best   step {found.step}{where}: {found.metric} {found.value:.4f}"
        f"  -> {found.folder / f'ckpt-{found.step}'}"
    )
    tf.summary.scalar(f"best/{found.metric}", found.value, step=step)


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


def _images(tag: str, images: list[np.ndarray], *, step: int) -> None:
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    padded = np.full((len(images), height, width, 3), 255, np.uint8)
    for slot, image in zip(padded, images, strict=True):
        slot[: image.shape[0], : image.shape[1]] = image
    with tf.summary.record_if(True):  # Orbit turns summaries off inside its train loop
        tf.summary.image(tag, padded, step=step, max_outputs=len(images))


def _with_time(pixels: np.ndarray) -> np.ndarray:
    """An image is a video of one frame.  -> [B, T, H, W, 3]"""
    return pixels if pixels.ndim == 5 else pixels[:, np.newaxis]


def _label_text(labels: np.ndarray, classes) -> str:
    return ", ".join(classes[k] for k in np.flatnonzero(labels)[:5]) or "(no label)"
