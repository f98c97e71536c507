"""Few-shot classification of frozen features by regularised least squares.

Source: TokenLearner, Section 3.4, after the ViT paper: a linear map of the features
onto {-1, 1}^K, solved for a few labelled images a class.  In float64 on the host.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

BIAS = 100.0  # of the constant feature: so large that l2 hardly holds the bias back
STD_FLOOR = 1e-5  # added to a feature's standard deviation


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """What `solve` finds: `mean` and `std` [C], `weights` [C + 1, K], the bias last."""

    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray

    def scores(self, features: np.ndarray) -> np.ndarray:
        """About 1 for a feature's class and -1 for the others.

        Shapes: features [N, C] -> [N, K]
        """
        return _whiten(features, mean=self.mean, std=self.std) @ self.weights


def select_shots(labels: np.ndarray, shots: int, *, num_classes: int) -> np.ndarray:
    """Places of the first `shots` images of each class, class after class.

    Differs: where a class has fewer images, the authors' code takes those there are.

    Shapes: labels [N] -> [num_classes * shots]
    Args:
      labels: a class 0..num_classes-1 an image.
      shots: images of each class, at least 1.
      num_classes: K.

    Raises:
      ValueError: naming the classes that have fewer images, or for labels or shots out
        of range.
    """
    labels = np.asarray(labels)
    _check_labels(labels, num_classes=num_classes)
    if labels.ndim != 1:
        raise ValueError(
            f"select_shots: wanted one label an image, [N], got shape {labels.shape}."
        )
    if shots < 1:
        raise ValueError(f"select_shots: shots must be at least 1, got {shots}.")
    counts = np.bincount(labels, minlength=num_classes)
    few = np.flatnonzero(counts < shots)
    if len(few):
        named = ", ".join(f"{c} ({counts[c]})" for c in few[:5])
        more = ", ..." if len(few) > 5 else ""
        raise ValueError(
            f"select_shots: {len(few)} of {num_classes} classes have fewer than"
            f" {shots} images: {named}{more}. Take fewer shots or a larger split."
        )
    places = [np.flatnonzero(labels == c)[:shots] for c in range(num_classes)]
    return np.concatenate(places)


def solve(
    features: np.ndarray, labels: np.ndarray, *, num_classes: int, l2: float
) -> LinearMap:
    """The linear map of whitened features onto {-1, 1}^K with the least squared error.

    Shapes: features [N, C], labels [N] or [N, K]
    Args:
      features: are whitened by their own mean and standard deviation.
      labels: a class an image, or nonzero at each of its classes.
      num_classes: K.
      l2: weight of the squared weights, bias included, above 0.

    Raises:
      ValueError: for shapes that do not agree, labels out of range, features that are
        not finite, or an l2 that is not above 0.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    _check_features(features, labels, num_classes=num_classes)
    if l2 <= 0:
        raise ValueError(f"solve: l2 must be above 0, got {l2}.")
    mean, std = features.mean(axis=0), features.std(axis=0) + STD_FLOOR
    x = _whiten(features, mean=mean, std=std)  # [N, C + 1]
    if labels.ndim == 1:
        labels = labels[:, np.newaxis] == np.arange(num_classes)  # [N, K]
    targets = np.where(labels > 0, 1.0, -1.0)
    # (X'X + l2 I)^-1 X' = X' (XX' + l2 I)^-1: the smaller system is solved.
    if x.shape[0] < x.shape[1]:
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(x.shape[0]), targets)
    else:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ targets)
    return LinearMap(mean, std, weights)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images whose highest score is at their class, or at one of them.

    Shapes: scores [N, K], labels [N] or [N, K]
    """
    best, labels = np.argmax(scores, axis=1), np.asarray(labels)
    if labels.ndim == 1:
        return float(np.mean(best == labels))
    return float(np.mean(np.take_along_axis(labels, best[:, np.newaxis], axis=1) > 0))


def accuracies(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    shots: Sequence[int],
    l2_regs: Sequence[float],
) -> np.ndarray:
    """Accuracy on the test images for every number of shots and every l2.

    Shapes: train_features [M, C], train_labels [M], test_features [N, C],
      test_labels [N] -> [shots, l2_regs]
    Args:
      train_features: of images of which the first of each class are taken.
      train_labels: a class an image.
      test_features: of images that are not in training.
      test_labels: a class an image.
      num_classes: K.
      shots: numbers of images a class.
      l2_regs: see `solve`.

    Raises:
      ValueError: as `select_shots` and `solve` do.
    """
    train_features, train_labels = np.asarray(train_features), np.asarray(train_labels)
    test_features, test_labels = np.asarray(test_features), np.asarray(test_labels)
    _check_features(test_features, test_labels, num_classes=num_classes)
    if len(train_features) != len(train_labels):
        raise ValueError(
            f"accuracies: wanted a label for each training image, got"
            f" {len(train_labels)} labels and {len(train_features)} images."
        )
    if train_features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            "accuracies: wanted features of one size in training and test, got"
            f" {train_features.shape[1:]} and {test_features.shape[1:]}."
        )
    found = np.empty([len(shots), len(l2_regs)])
    for i, number in enumerate(shots):
        taken = select_shots(train_labels, number, num_classes=num_classes)
        for j, l2 in enumerate(l2_regs):
            linear_map = solve(
                train_features[taken],
                train_labels[taken],
                num_classes=num_classes,
                l2=l2,
            )
            found[i, j] = accuracy(linear_map.scores(test_features), test_labels)
    return found


def best_l2(
    dataset_accuracies: Sequence[np.ndarray], l2_regs: Sequence[float]
) -> np.ndarray:
    """For every number of shots, the one l2 that does best over all data sets.

    Each data set ranks the l2 by its accuracies, and the highest mean rank wins, so
    that an easy data set counts as much as a hard one.  As in the authors' code, the
    later of equal accuracies has the higher rank, and the first of equal means wins.

    Shapes: dataset_accuracies D times [shots, l2_regs] -> [shots]
    Raises:
      ValueError: for no data set, or accuracies of another shape.
    """
    shapes = [np.shape(found) for found in dataset_accuracies]
    if not shapes or len(set(shapes)) > 1 or shapes[0][1:] != (len(l2_regs),):
        raise ValueError(
            "best_l2: wanted accuracies [shots, l2_regs] of one or more data sets, with"
            f" {len(l2_regs)} l2_regs, got shapes {shapes}."
        )
    order = np.argsort(dataset_accuracies, axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1, kind="stable")  # [D, shots, l2_regs]
    return np.asarray(l2_regs)[np.argmax(ranks.mean(axis=0), axis=-1)]


def _whiten(features: np.ndarray, *, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    x = (np.asarray(features, np.float64) - mean) / std
    return np.pad(x, [(0, 0), (0, 1)], constant_values=BIAS)  # [N, C + 1]


def _check_features(
    features: np.ndarray, labels: np.ndarray, *, num_classes: int
) -> None:
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(
            "fewshot: wanted features [N, C] and a label for each, got shapes"
            f" {features.shape} and {labels.shape}."
        )
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"fewshot: {len(wrong)} images have features that are not finite, first"
            f" row {wrong[0]}. Look at the checkpoint, or compute them in float32."
        )
    _check_labels(labels, num_classes=num_classes)


def _check_labels(labels: np.ndarray, *, num_classes: int) -> None:
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"fewshot: wanted labels as whole numbers [N] or [N, {num_classes}], got"
            f" {labels.dtype} of shape {labels.shape}."
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise ValueError(
            f"fewshot: labels must be in 0..{num_classes - 1}, got"
            f" {labels[wrong[0]]} in row {wrong[0]} ({len(wrong)} such rows)."
        )
