import json
from pathlib import Path

import numpy as np
import pytest

from tl_tf import metrics

ORACLE = Path(__file__).parents[2] / "shared/data/charades_like"


def test_average_precision_by_hand():
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.3, 0.6], [0.2, 0.2]])
    labels = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    found = metrics.charades_map(scores, labels)
    # Class 0 ranks + - + -: (1/1 + 2/3) / 2.  Class 1 ranks rows 1, 2, 3, 0: + - + -.
    np.testing.assert_allclose(found.per_class, [5 / 6, 5 / 6], rtol=1e-12)
    assert found.mean == pytest.approx(5 / 6)


def test_a_video_without_label_ranks_last_whatever_its_score():
    scores = np.array([[0.1], [0.9], [0.2]])
    labels = np.array([[1], [0], [1]])
    # Row 1 has no label: it is last, so both positives come first.
    assert metrics.charades_map(scores, labels).mean == 1.0


def test_ties_keep_the_order_of_the_rows():
    scores = np.zeros((3, 2))
    labels = np.array([[0, 1], [1, 0], [0, 1]])
    found = metrics.charades_map(scores, labels)
    np.testing.assert_allclose(found.per_class, [1 / 2, (1 + 2 / 3) / 2], rtol=1e-12)


def test_classes_without_positive_are_reported_and_not_averaged():
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9]])
    labels = np.array([[1, 0, 0], [0, 0, 1]])
    found = metrics.charades_map(scores, labels)
    assert found.classes_without_positive == [1]
    assert np.isnan(found.per_class[1])
    assert found.mean == 1.0


def test_wap_weights_classes_by_their_positives():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
    labels = np.array([[1, 1], [1, 0], [0, 1]])
    found = metrics.charades_map(scores, labels)
    # Class 0: 1.  Class 1 ranks rows 2, 1, 0 as + - +: (1 + 2/3) / 2.
    assert found.weighted == pytest.approx((2 * 1 + 2 * 5 / 6) / 4)
    assert found.mean == pytest.approx((1 + 5 / 6) / 2)


def test_the_given_arrays_are_left_alone():
    scores, labels = np.array([[0.1], [0.9]]), np.array([[1], [0]])
    metrics.charades_map(scores, labels)
    assert scores[1, 0] == 0.9


@pytest.mark.skipif(not ORACLE.is_dir(), reason="the oracle is not on this machine")
@pytest.mark.parametrize("case", ["continuous", "rounded_1dp", "all_equal"])
def test_agrees_with_the_oracle(case):
    stored = np.load(ORACLE / "map_oracle.npz")
    expected = json.loads((ORACLE / "map_oracle.json").read_text())[case]
    scores = {
        "continuous": stored["scores"],
        "rounded_1dp": np.round(stored["scores"], 1),
        "all_equal": np.zeros_like(stored["scores"]),
    }[case]
    found = metrics.charades_map(scores, stored["gt"])
    assert found.mean == pytest.approx(expected["official_mAP"], abs=1e-9)
    assert found.weighted == pytest.approx(expected["official_wAP"], abs=1e-9)


@pytest.mark.parametrize(
    "scores, labels, text",
    [
        (np.zeros((2, 3)), np.ones((3, 2)), r"one shape .* got \(2, 3\) and \(3, 2\)"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "2 videos have NaN scores"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "no video has a label"),
    ],
)
def test_bad_scores_are_refused(scores, labels, text):
    with pytest.raises(ValueError, match=text):
        metrics.charades_map(scores, labels)


def test_top_k_accuracy_by_hand():
    scores = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    labels = np.eye(3)[[0, 1, 0]]
    assert metrics.top_k_accuracy(scores, labels, 1) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(scores, labels, 2) == pytest.approx(2 / 3)
    assert metrics.top_k_accuracy(scores, labels, 3) == 1.0


def test_top_k_accuracy_refuses_several_labels():
    with pytest.raises(ValueError, match="one label a video, got 2 in row 1"):
        metrics.top_k_accuracy(np.zeros((2, 3)), np.array([[1, 0, 0], [1, 1, 0]]), 1)


def test_top_k_accuracy_refuses_k_out_of_range():
    with pytest.raises(ValueError, match="k must be in 1..3, got 5"):
        metrics.top_k_accuracy(np.zeros((2, 3)), np.eye(3)[:2], 5)


def accuracy_of(pairs) -> metrics.ClassAccuracy:
    """Of rows of (class, taken for), of 4 classes."""
    wanted, taken = np.array(pairs).T
    return metrics.class_accuracy(np.eye(4)[taken], np.eye(4)[wanted])


def test_class_accuracy_by_hand():
    found = accuracy_of([(0, 0), (0, 2), (0, 0), (1, 3), (3, 3)])
    np.testing.assert_allclose(found.per_class, [2 / 3, 0, np.nan, 1])
    assert found.mean == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found.positives.tolist() == [3, 1, 0, 1]
    equal = metrics.class_accuracy(np.zeros((2, 3)), np.eye(3)[:2])
    assert equal.predicted.tolist() == [0, 0]  # the first of equal scores


def test_confusion_by_hand():
    found = accuracy_of([(0, 2), (1, 3), (0, 0), (1, 3), (0, 2), (1, 0), (1, 3)])
    assert metrics.confusion_matrix(found).tolist() == [
        [1, 0, 2, 0],
        [1, 0, 0, 3],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert metrics.most_confused(found, 2) == [(1, 3, 3), (0, 2, 2)]
    assert metrics.most_confused(accuracy_of([(1, 1)]), 2) == []


def test_real_accuracy_by_hand():
    scores = np.array([[0.1, 0.7, 0.2], [0.9, 0.3, 0.2], [0.2, 0.2, 0.1], [5, 6, 7]])
    labels = np.array([[0, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])
    # Right, wrong, right (the first of equal scores), and no label.
    accuracy, images = metrics.real_accuracy(scores, labels)
    assert accuracy == pytest.approx(2 / 3)
    assert images == 3


@pytest.mark.parametrize(
    "scores, labels, text",
    [
        (np.zeros((2, 3)), np.ones((3, 2)), r"one shape .* got \(2, 3\) and \(3, 2\)"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), "2 images with labels have NaN"),
        (np.zeros((2, 3)), np.zeros((2, 3)), "none of 2 images has a label. Use a"),
    ],
)
def test_bad_real_scores_are_refused(scores, labels, text):
    with pytest.raises(ValueError, match=text):
        metrics.real_accuracy(scores, labels)
