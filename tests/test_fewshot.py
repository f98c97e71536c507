import json
from pathlib import Path

import numpy as np
import pytest

from tl_tf import fewshot

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
N, C, K = 23, 7, 3


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    if not REFERENCE.is_dir():
        pytest.skip("the reference outputs are not on this machine")
    with np.load(REFERENCE / "fewshot.npz") as file:
        return dict(file)


def labelled(n=N, c=C, seed=5):
    """Features that their labels shift, and those labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % K
    centers = 3 * np.random.default_rng(0).normal(size=(K, c))
    return centers[labels] + random.normal(size=(n, c)), labels


def rows_of(stored, name):
    config = json.loads(str(stored["__config__"]))
    x, y = stored[f"{name}/x_train"], stored[f"{name}/y_train"]
    x_test, y_test = stored[f"{name}/x_test"], stored[f"{name}/y_test"]
    return x, y, x_test, y_test, config[name]["num_classes"]


def accuracies_of(stored, name):
    *arrays, num_classes = rows_of(stored, name)
    return fewshot.accuracies(
        *arrays,
        num_classes=num_classes,
        shots=stored["shots"],
        l2_regs=stored["l2_regs"],
    )


@pytest.mark.parametrize("name", ["a", "b"])
def test_as_many_images_are_right_as_in_the_authors_code(stored, name):
    found = accuracies_of(stored, name)
    images = len(stored[f"{name}/y_test"])
    right = stored[f"{name}/accuracy"] * images  # whole numbers, up to float32
    np.testing.assert_array_equal(np.rint(found * images), np.rint(right))
    np.testing.assert_allclose(found * images, right, atol=1e-4)


@pytest.mark.parametrize("name", ["a", "b"])
def test_labels_of_several_classes_agree_with_the_authors(stored, name):
    x, y, x_test, y_test, num_classes = rows_of(stored, name)
    hot, hot_test = np.eye(num_classes)[y], np.eye(num_classes)[y_test]
    linear_map = fewshot.solve(x, hot, num_classes=num_classes, l2=4.0)
    found = fewshot.accuracy(linear_map.scores(x_test), hot_test)
    expected = stored[f"{name}/accuracy_onehot_branch_l2_4"]
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_the_best_l2_agrees_with_the_authors(stored):
    both = [accuracies_of(stored, name) for name in ("a", "b")]
    found = fewshot.best_l2(both, stored["l2_regs"])
    np.testing.assert_array_equal(found, stored["best_l2_per_shot"])


def test_shots_are_the_first_of_each_class_in_order():
    labels = np.array([2, 0, 2, 1, 2, 0, 1, 0])
    found = fewshot.select_shots(labels, 2, num_classes=3)
    np.testing.assert_array_equal(found, [1, 5, 3, 6, 0, 2])


@pytest.mark.parametrize("n", [5, 23])  # fewer and more images than features
def test_the_map_has_the_least_penalised_error(n):
    features, labels = labelled(n)
    l2 = 0.7
    found = fewshot.solve(features, labels, num_classes=K, l2=l2)
    whitened = (features - features.mean(0)) / (features.std(0) + 1e-5)
    x = np.concatenate([whitened, np.full([n, 1], 100.0)], axis=1)
    targets = 2 * np.eye(K)[labels] - 1
    # The same as ordinary least squares with one more row for each weight.
    rows = np.concatenate([x, np.sqrt(l2) * np.eye(C + 1)])
    wanted = np.linalg.lstsq(
        rows, np.concatenate([targets, np.zeros([C + 1, K])]), rcond=None
    )[0]
    np.testing.assert_allclose(found.weights, wanted, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(found.scores(features), x @ wanted, atol=1e-8)


def test_accuracy_by_hand():
    scores = np.array([[0.1, 0.7, 0.2], [0.9, 0.3, 0.2], [0.0, 0.1, 0.5]])
    assert fewshot.accuracy(scores, np.array([1, 2, 2])) == pytest.approx(2 / 3)
    several = np.array([[0, 1, 1], [1, 1, 0], [1, 1, 0]])
    assert fewshot.accuracy(scores, several) == pytest.approx(2 / 3)


def test_separate_classes_are_told_apart():
    train, test = labelled(), labelled(17, seed=6)
    found = fewshot.accuracies(
        *train, *test, num_classes=K, shots=[1, 5], l2_regs=[0.5, 8.0]
    )
    assert found.shape == (2, 2)
    assert found[1].min() == 1.0


def test_the_best_l2_has_the_highest_mean_rank():
    # Ranks of the first number of shots: 2 0 1 and 2 1 0; the means pick the first l2.
    # Of the second: 0 1 2 (equal, so the later is higher) and 1 2 0: means 0.5 1.5 1.
    first = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.5]])
    second = np.array([[0.4, 0.3, 0.2], [0.6, 0.7, 0.1]])
    found = fewshot.best_l2([first, second], [4.0, 2.0, 8.0])
    np.testing.assert_array_equal(found, [4.0, 2.0])


@pytest.mark.parametrize(
    "labels, shots, text",
    [
        (
            [0, 0, 1, 2, 2],
            2,
            r"1 of 3 classes have fewer than 2 images: 1 \(1\)\. Take",
        ),
        ([0, 0, 1, 1], 1, r"fewer than 1 images: 2 \(0\)"),
        ([0, 1, 3], 1, r"labels must be in 0..2, got 3 in row 2 \(1 such rows\)"),
        ([0, 1, 2], 0, "shots must be at least 1, got 0"),
        ([0.0, 1.0], 1, r"whole numbers \[N\] or \[N, 3\], got float64"),
        ([[0, 1, 0]], 1, r"one label an image, \[N\], got shape \(1, 3\)"),
    ],
)
def test_shots_that_cannot_be_taken_are_refused(labels, shots, text):
    with pytest.raises(ValueError, match=text):
        fewshot.select_shots(np.array(labels), shots, num_classes=3)


@pytest.mark.parametrize(
    "features, l2, text",
    [
        (np.zeros([4, C]), 1.0, r"a label for each, got shapes \(4, 7\) and \(23,\)"),
        (np.full([N, C], np.nan), 1.0, "23 images have features .* first row 0"),
        (np.zeros([N, C]), 0.0, "l2 must be above 0, got 0.0"),
    ],
)
def test_bad_features_are_refused(features, l2, text):
    with pytest.raises(ValueError, match=text):
        fewshot.solve(features, np.arange(N) % K, num_classes=K, l2=l2)


def test_training_and_test_must_agree():
    options = {"num_classes": K, "shots": [1], "l2_regs": [1.0]}
    with pytest.raises(ValueError, match=r"one size .* got \(7,\) and \(5,\)"):
        fewshot.accuracies(*labelled(), *labelled(c=5), **options)
    features, labels = labelled()
    with pytest.raises(ValueError, match="got 20 labels and 23 images"):
        fewshot.accuracies(features, labels[:20], *labelled(), **options)


def test_accuracies_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"with 4 l2_regs, got shapes .\(2, 3\)"):
        fewshot.best_l2([np.zeros([2, 3])], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match=r"one or more data sets"):
        fewshot.best_l2([], [1.0])
