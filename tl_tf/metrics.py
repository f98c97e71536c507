"""Scores of a whole evaluation, in float64 on the host."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
    """What `charades_map` finds.

    `per_class` is [K], with NaN for a class that has no positive; `mean` is over the
    classes that have one, `weighted` weights them by `positives` [K], their number.
    """

    mean: float
    weighted: float
    per_class: np.ndarray
    positives: np.ndarray
    classes_without_positive: list[int]


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """What `class_accuracy` finds.

    `per_class` is [K], with NaN for a class without rows; `mean` is over the classes
    that have some, `positives` [K] is their number; `wanted` and `predicted` are int
    [N], a row's label and its highest score.
    """

    mean: float
    per_class: np.ndarray
    positives: np.ndarray
    wanted: np.ndarray
    predicted: np.ndarray


def charades_map(scores: np.ndarray, labels: np.ndarray) -> AveragePrecision:
    """Mean average precision by the rule of Charades_v1_classify.m.

    A video without any label is ranked last in every class; ties keep the order of the
    rows; AP is the mean over a class's positives of the precision at each, without
    interpolation.

    Differs: the official script returns NaN as soon as one class has no positive; here
    such classes are named, and left out of the mean.

    Args:
      scores: [N, K], a row a video, in the order of the annotation file.
      labels: [N, K], nonzero where the video has the label.

    Raises:
      ValueError: for shapes that do not agree, scores that are NaN, or no positive at
        all.
    """
    scores = np.array(scores, np.float64)
    positive = np.asarray(labels) > 0
    if scores.ndim != 2 or scores.shape != positive.shape:
        raise ValueError(
            "charades_map: wanted scores and labels of one shape [videos, classes], got"
            f" {scores.shape} and {positive.shape}."
        )
    if np.isnan(scores).any():
        rows = np.flatnonzero(np.isnan(scores).any(axis=1))
        raise ValueError(
            f"charades_map: {len(rows)} videos have NaN scores, first row {rows[0]}."
        )
    if not positive.any():
        raise ValueError("charades_map: no video has a label; nothing can be ranked.")
    scores[~positive.any(axis=1)] = -np.inf
    order = np.argsort(-scores, axis=0, kind="stable")  # [N, K]
    ranked = np.take_along_axis(positive, order, axis=0)
    ranks = np.arange(1, len(scores) + 1)[:, np.newaxis]
    precision = np.cumsum(ranked, axis=0) / ranks
    positives = positive.sum(axis=0)  # [K]
    with np.errstate(invalid="ignore"):
        per_class = (precision * ranked).sum(axis=0) / positives
    present = positives > 0
    return AveragePrecision(
        mean=float(per_class[present].mean()),
        weighted=float(np.average(per_class[present], weights=positives[present])),
        per_class=per_class,
        positives=positives,
        classes_without_positive=np.flatnonzero(~present).tolist(),
    )


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows whose single label is among the k highest scores.

    Raises:
      ValueError: when a row does not have exactly one label, or k is out of range.
    """
    positive = np.asarray(labels) > 0
    wrong = np.flatnonzero(positive.sum(axis=1) != 1)
    if len(wrong):
        raise ValueError(
            f"top_k_accuracy: wanted one label a video, got"
            f" {positive[wrong[0]].sum()} in row {wrong[0]} ({len(wrong)} such rows)."
            " Use the sigmoid loss and mAP for data with several labels."
        )
    if not 1 <= k <= positive.shape[1]:
        raise ValueError(
            f"top_k_accuracy: k must be in 1..{positive.shape[1]}, got {k}."
        )
    best = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(positive, best, axis=1).any(axis=1).mean())


def class_accuracy(scores: np.ndarray, labels: np.ndarray) -> ClassAccuracy:
    """Share of each class's rows whose highest score, the first of equals, is right.

    Args:
      scores: [N, K].
      labels: [N, K], nonzero at a row's one label.
    """
    wanted, predicted = np.argmax(labels, axis=1), np.argmax(scores, axis=1)
    num_classes = labels.shape[1]
    positives = np.bincount(wanted, minlength=num_classes)
    right = np.bincount(wanted[wanted == predicted], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        per_class = right / positives
    return ClassAccuracy(
        mean=float(np.nanmean(per_class)),
        per_class=per_class,
        positives=positives,
        wanted=wanted,
        predicted=predicted,
    )


def confusion_matrix(accuracy: ClassAccuracy) -> np.ndarray:
    """int [K, K]: rows of each class, by the class that they were taken for."""
    matrix = np.zeros([len(accuracy.positives)] * 2, int)
    np.add.at(matrix, (accuracy.wanted, accuracy.predicted), 1)
    return matrix


def most_confused(accuracy: ClassAccuracy, most: int) -> list[tuple[int, int, int]]:
    """Pairs of a class and what it was taken for, and how often; worst first."""
    is_wrong = accuracy.wanted != accuracy.predicted
    pairs = np.stack([accuracy.wanted, accuracy.predicted], axis=1)[is_wrong]
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:most]
    return [(*map(int, pairs[i]), int(counts[i])) for i in worst]


def real_accuracy(scores: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Accuracy by the labels of ImageNet ReaL, and the number of images it is over.

    An image is right when its highest score, the first of equal ones, is at one of its
    labels.  Images without any label are left out.

    Source: Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159.
    Args:
      scores: [N, K], a row an image.
      labels: [N, K], nonzero where the image has the label.

    Raises:
      ValueError: for shapes that do not agree, scores that are NaN, or no label at all.
    """
    scores, positive = np.asarray(scores), np.asarray(labels) > 0
    if scores.ndim != 2 or scores.shape != positive.shape:
        raise ValueError(
            "real_accuracy: wanted scores and labels of one shape [images, classes],"
            f" got {scores.shape} and {positive.shape}."
        )
    has_label = positive.any(axis=1)
    if not has_label.any():
        raise ValueError(
            f"real_accuracy: none of {len(scores)} images has a label. Use a split with"
            " ReaL's labels, or top_k_accuracy for ImageNet's own."
        )
    scores, positive = scores[has_label], positive[has_label]
    if np.isnan(scores).any():
        raise ValueError(
            f"real_accuracy: {np.isnan(scores).any(axis=1).sum()} images with labels"
            " have NaN scores."
        )
    best = np.argmax(scores, axis=1)[:, np.newaxis]  # [N, 1]
    right = np.take_along_axis(positive, best, axis=1)
    return float(right.mean()), len(right)
