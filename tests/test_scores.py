import dataclasses

import numpy as np
import pytest

from tl_tf import metrics, scores

N, V, K = 5, 6, 3


def views(seed=2, *, labels=(0, 2, 1, 2, 0)) -> scores.ViewScores:
    """Two clips of three crops of five videos."""
    rng = np.random.default_rng(seed)
    return scores.ViewScores(
        ids=np.array(list("abcde")),
        rows=np.array([0, 1, 2, 4, 5]),
        labels=np.eye(K)[list(labels)],
        classes=np.array(["left", "right", "up"]),
        view_scores=rng.random([N, V, K]).astype(np.float32),
        view_losses=rng.random([N, V]).astype(np.float32),
        view_clips=np.array([0, 0, 0, 1, 1, 1]),
        view_crops=np.array(["first", "centre", "last"] * 2),
        view_starts=rng.integers(0, 9, [N, V]),
        skipped_rows=np.array([3]),
        skipped_labels=np.eye(K)[[1]],
    )


@pytest.mark.parametrize("has_starts", [True, False])
def test_what_is_saved_can_be_loaded(has_starts, tmp_path):
    one = views()
    if not has_starts:  # images
        one = dataclasses.replace(one, view_starts=None)
    with open(tmp_path / "a.npz", "wb") as file:
        one.save(file)
    other = scores.ViewScores.load(tmp_path / "a.npz")
    for field in dataclasses.fields(one):
        want, got = (getattr(each, field.name) for each in (one, other))
        assert (want is None and got is None) or (want == got).all(), field.name


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="a.npz: no such file. Evaluate first"):
        scores.ViewScores.load(tmp_path / "a.npz")


def test_a_file_without_the_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", ids=np.zeros(3))
    with pytest.raises(ValueError, match="wanted the arrays classes, labels, rows"):
        scores.ViewScores.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "wanted, taken",
    [
        ({"crops": ["centre"]}, [1, 4]),
        ({"clips": [1]}, [3, 4, 5]),
        ({"clips": [1], "crops": ["last", "first"]}, [3, 5]),
        ({}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_some_views_are_taken(wanted, taken):
    some = views().take(**wanted)
    for name in ("view_scores", "view_losses", "view_starts"):
        np.testing.assert_array_equal(
            getattr(some, name), getattr(views(), name)[:, taken]
        )
    assert some.num_clips * some.num_crops == len(taken)
    assert some.view_scores.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"clips": [0, 2]}, r"clips: wanted some of \[0, 1\], got \[0, 2\]"),
        ({"crops": ["left"]}, r"wanted some of \['centre', 'first', 'last'\], got"),
        ({"clips": []}, r"clips: wanted some of \[0, 1\], got \[\]"),
    ],
)
def test_views_that_were_not_scored_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        views().take(**wanted)


@pytest.mark.parametrize("merge", ["max", "mean"])
def test_views_are_merged_by_example(merge):
    one = views()
    found = scores.evaluate(one, metric="top_k", merge=merge)
    merged = getattr(one.view_scores, merge)(axis=1)
    is_right = merged.argmax(axis=1) == [0, 2, 1, 2, 0]
    assert found.values["top1"] == pytest.approx(is_right.mean())
    by_class = [is_right[[0, 4]].mean(), is_right[2], is_right[[1, 3]].mean()]
    assert found.values["mean_class"] == pytest.approx(np.mean(by_class))
    assert found.values["loss"] == pytest.approx(one.view_losses.mean())


def test_a_skipped_video_stands_in_its_row():
    one = views()
    merged = np.insert(one.view_scores.max(axis=1), 3, -1, axis=0).astype(float)
    labels = np.insert(one.labels, 3, one.skipped_labels[0], axis=0)
    want = metrics.charades_map(merged, labels)
    found = scores.evaluate(one, metric="map", merge="max")
    assert found.values["map"] == want.mean
    assert found.ranking.positives.tolist() == [2, 2, 2]


@pytest.mark.parametrize("metric", scores.METRICS)
@pytest.mark.parametrize("num_classes", [3, 6])
def test_what_is_measured_is_known_before(metric, num_classes):
    labels = np.eye(num_classes)[[0, 1, 2]]
    rng = np.random.default_rng(5)
    views = scores.ViewScores(
        ids=np.array(["a", "b", "c"]),
        rows=np.arange(3),
        labels=labels,
        classes=np.array([f"c{k}" for k in range(num_classes)]),
        view_scores=rng.random([3, 2, num_classes]).astype(np.float32),
        view_losses=np.full([3, 2], 0.5, np.float32),
        view_clips=np.array([0, 1]),
        view_crops=np.array(["centre", "centre"]),
        view_starts=None,
        skipped_rows=np.zeros(0, int),
        skipped_labels=np.zeros([0, num_classes]),
    )
    found = scores.evaluate(views, metric=metric, merge="max").values
    assert tuple(found) == scores.measures(metric, num_classes=num_classes)
