import json

import pytest

from benchmarks import folds


def test_without_groups_each_class_is_cut_into_runs():
    files = [f"run/{i}.mp4" for i in range(6)] + [f"walk/{i}.mp4" for i in range(3)]
    assert folds.fold_of_files(reversed(files), 3) == {
        "run/0.mp4": 0,
        "run/1.mp4": 0,
        "run/2.mp4": 1,
        "run/3.mp4": 1,
        "run/4.mp4": 2,
        "run/5.mp4": 2,
        "walk/0.mp4": 0,
        "walk/1.mp4": 1,
        "walk/2.mp4": 2,
    }


def test_a_group_stays_together_whatever_its_classes():
    # Lined up by group: 2 | 2 2 2 | 5 5 | 10, so middles at 2 / 7, 5 / 7 and 6.5 / 7.
    group_of = {"a/1": 10, "a/2": 2, "a/3": 5, "b/1": 2, "b/2": 2, "b/3": 5, "b/4": 2}
    fold_of = folds.fold_of_files(list(group_of), 2, group_of, stratify=False)
    first = {file for file, fold in fold_of.items() if fold == 0}
    assert first == {"a/2", "b/1", "b/2", "b/4"}


def test_groups_of_the_same_classes_are_lined_up_apart():
    # Of both: 0 0 | 3 3; of a: 1 | 5; of b: 2 | 4 4 4, of which 2 is the short one.
    group_of = {"a/1": 0, "b/1": 0, "a/2": 3, "b/2": 3, "a/3": 1, "a/4": 5}
    group_of |= {"b/3": 2, "b/4": 4, "b/5": 4, "b/6": 4}
    fold_of = folds.fold_of_files(list(group_of), 2, group_of)
    first = {file for file, fold in fold_of.items() if fold == 0}
    assert first == {"a/1", "b/1", "a/3", "b/3"}


def test_a_file_without_a_group_is_named():
    with pytest.raises(ValueError, match="a/2: has no group. Add it to the JSON"):
        folds.fold_of_files(["a/1", "a/2"], 2, {"a/1": 0})


def test_a_fold_without_videos_is_an_error():
    with pytest.raises(ValueError, match="fold 1 of 3 gets none of 4 videos. Ask for"):
        folds.fold_of_files(["a/1", "a/2", "b/1", "b/2"], 3)


def test_summary_counts_folds_alike_and_videos_alike():
    found = folds.summary(
        [{"run": (4, 3), "walk": (1, 0)}, {"run": (2, 1), "walk": (8, 8)}]
    )
    assert found["by_fold"] == [pytest.approx(0.6), pytest.approx(0.9)]
    assert found["mean"] == pytest.approx(0.75)
    assert found["spread"] == pytest.approx(0.3 / 2**0.5)
    assert found["pooled"] == pytest.approx(12 / 15)
    assert found["by_class"] == {"run": 4 / 6, "walk": 8 / 9}
    assert found["balanced"] == pytest.approx((4 / 6 + 8 / 9) / 2)


def test_a_class_may_be_missing_from_a_fold():
    found = folds.summary([{"run": (4, 3), "walk": (1, 0)}, {"run": (2, 1)}])
    assert found["by_fold"] == [pytest.approx(0.6), pytest.approx(0.5)]
    assert found["by_class"] == {"run": 4 / 6, "walk": 0.0}


def test_links_divide_the_videos(tmp_path):
    source = tmp_path / "videos"
    for file in ("run/1.mp4", "walk/2.mp4", "walk/3.mp4"):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text(file)
    fold_of = {"run/1.mp4": 0, "walk/2.mp4": 1, "walk/3.mp4": 0}
    for _ in range(2):  # again, as a command that goes on does
        folds.link_videos(fold_of, test_fold=1, source=source, to=tmp_path / "fold1")
    links = sorted((tmp_path / "fold1").rglob("*.mp4"))
    assert [p.relative_to(tmp_path / "fold1").as_posix() for p in links] == [
        "test/walk/2.mp4",
        "train/run/1.mp4",
        "train/walk/3.mp4",
    ]
    assert [link.read_text() for link in links] == [
        "walk/2.mp4",
        "run/1.mp4",
        "walk/3.mp4",
    ]


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "_run", lambda *arguments: pytest.fail("ran again"))
    (tmp_path / "counts.json").write_text(json.dumps({"run": [4, 3]}))
    counts = folds._test("recipe.gin", [], data_dir=tmp_path, model_dir=tmp_path)
    assert counts == {"run": [4, 3]}
