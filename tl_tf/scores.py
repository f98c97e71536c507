"""The scores of every view: stored beside a result, and merged, without the model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from tl_tf import metrics, npz

MERGES = {"max": np.max, "mean": np.mean}
METRICS = ("map", "top_k", "real")
TOP_KS = (1, 5)
CROPS = {1: ("centre",), 3: ("first", "centre", "last")}  # along the long side


@dataclasses.dataclass(frozen=True)
class ViewScores:
    """What a model said of every view of N examples, before merging.

    The fields are the arrays of `results/<split>-<step>.scores.npz`.

    Attributes:
      ids: str [N], in the order of the annotations.
      rows: int [N], the places in the annotations; ties are broken by them.
      labels: [N, K], 0 or 1.
      classes: str [K].
      view_scores: float32 [N, V, K].
      view_losses: float32 [N, V].
      view_clips: int [V], which of the clips of a video, from its start.
      view_crops: str [V], of CROPS.
      view_starts: of videos, int32 [N, V], the source frames at which views begin.
      skipped_rows: int [M], of the examples that could not be built.
      skipped_labels: [M, K], theirs.
    """

    ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    view_scores: np.ndarray
    view_losses: np.ndarray
    view_clips: np.ndarray
    view_crops: np.ndarray
    view_starts: np.ndarray | None
    skipped_rows: np.ndarray
    skipped_labels: np.ndarray

    @property
    def num_clips(self) -> int:
        """Clips of a video."""
        return len(set(self.view_clips.tolist()))

    @property
    def num_crops(self) -> int:
        """Crops of a clip."""
        return len(set(self.view_crops.tolist()))

    def save(self, file: IO[bytes]) -> None:
        """Writes an .npz file."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})

    @classmethod
    def load(cls, path: Path) -> "ViewScores":
        """Reads what `save` wrote.

        Raises:
          ValueError: for a missing file, or one without these arrays.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no such file. Evaluate first: --mode=eval.")
        names = [f.name for f in dataclasses.fields(cls)]
        stored = npz.read(path)
        missing = sorted({*names} - {*stored, "view_starts"})
        if missing:
            raise ValueError(
                f"{path}: wanted the arrays {', '.join(missing)}, which an"
                " evaluation stores. Evaluate again."
            )
        return cls(**{name: stored.get(name) for name in names})

    def take(
        self, *, clips: Sequence[int] | None = None, crops: Sequence[str] | None = None
    ) -> "ViewScores":
        """Some of the views: those of the clips and of the crops that are named.

        Raises:
          ValueError: for a clip or a crop that was not scored.
        """
        is_taken = np.ones(len(self.view_clips), bool)
        for name, wanted, have in (
            ("clips", clips, self.view_clips),
            ("crops", crops, self.view_crops),
        ):
            if wanted is None:
                continue
            unknown = [one for one in wanted if one not in have]
            if unknown or not wanted:
                raise ValueError(
                    f"{name}: wanted some of {sorted(set(have.tolist()))}, got"
                    f" {list(wanted)}."
                )
            is_taken &= np.isin(have, wanted)
        starts = self.view_starts
        # Not by [:, is_taken]: its order in memory changes the last digit of a mean.
        return dataclasses.replace(
            self,
            view_scores=np.compress(is_taken, self.view_scores, axis=1),
            view_losses=np.compress(is_taken, self.view_losses, axis=1),
            view_clips=self.view_clips[is_taken],
            view_crops=self.view_crops[is_taken],
            view_starts=None if starts is None else starts[:, is_taken],
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
      values: the metrics by name, as map and wap, or top1, top5 and mean_class; and the
        loss.
      ranking: average precision by class, for the metric "map".
      accuracy: accuracy by class, for the metric "top_k".
      views: what it was found from.
    """

    values: dict[str, float]
    views: ViewScores
    ranking: metrics.AveragePrecision | None = None
    accuracy: metrics.ClassAccuracy | None = None


def check(*, metric: str, merge: str) -> None:
    """Raises a ValueError for another metric or merge."""
    for name, value, choices in (
        ("merge", merge, tuple(MERGES)),
        ("metric", metric, METRICS),
    ):
        if value not in choices:
            raise ValueError(
                f"build_evaluator.{name} must be one of {choices}, got {value!r}."
            )


def measures(metric: str, *, num_classes: int) -> tuple[str, ...]:
    """Names of the values that `evaluate` finds by a metric."""
    found = {"map": ("map", "wap"), "real": ("real",)}
    top = tuple(f"top{k}" for k in TOP_KS if k <= num_classes)
    return (*found.get(metric, (*top, "mean_class")), "loss")


def evaluate(views: ViewScores, *, metric: str, merge: str) -> Evaluation:
    """Merges the views of each example, and ranks the examples.

    Args:
      views: of a whole split.
      metric: "map" for several labels an example (Charades' rule), "top_k" for exactly
        one, "real" for ImageNet ReaL: any of an image's labels counts as right.
      merge: "max" or "mean" of an example's scores over its views.

    Raises:
      ValueError: for another merge or metric, or labels that do not suit it.
    """
    check(metric=metric, merge=merge)
    scores = MERGES[merge](views.view_scores, axis=1)  # [N, K]
    loss = {"loss": float(np.mean(views.view_losses))}
    if metric == "top_k":
        ks = [k for k in TOP_KS if k <= scores.shape[1]]
        found = {f"top{k}": metrics.top_k_accuracy(scores, views.labels, k) for k in ks}
        accuracy = metrics.class_accuracy(scores, views.labels)
        values = found | {"mean_class": accuracy.mean} | loss
        return Evaluation(values, views, accuracy=accuracy)
    if metric == "real":
        real, _ = metrics.real_accuracy(scores, views.labels)
        return Evaluation({"real": real} | loss, views)
    # The official rule scores a video without prediction as -inf, in its place: a
    # broken file must not raise the score.
    missing = views.skipped_labels
    order = np.argsort(np.concatenate([views.rows, views.skipped_rows]))
    ranking = metrics.charades_map(
        np.concatenate([scores, np.full_like(missing, -np.inf)])[order],
        np.concatenate([views.labels, missing])[order],
    )
    values = {"map": ranking.mean, "wap": ranking.weighted} | loss
    return Evaluation(values, views, ranking=ranking)
