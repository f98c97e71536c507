import dataclasses
import json
from pathlib import Path

import gin
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from tl_tf import metrics, results, scores
from tl_tf.inputs import split

CLASSES = ["walk", "run", "sit"]


@pytest.fixture
def data():
    return split.Split(
        batches=tf.data.Dataset.range(0),
        dataset="toy",
        split="test[:50%]",
        classes=CLASSES,
        num_examples=3,
        coverage={"share": 0.75},
        explain=str,
    )


def views(labels, *, num_classes=3) -> scores.ViewScores:
    """Two clips of three videos; a fourth, of class 0, could not be built."""
    rng = np.random.default_rng(4)
    return scores.ViewScores(
        ids=np.array(["a", "b", "c"]),
        rows=np.array([0, 1, 3]),
        labels=np.array(labels),
        classes=np.array(CLASSES[:num_classes]),
        view_scores=rng.random([3, 2, num_classes]).astype(np.float32),
        view_losses=np.full([3, 2], 0.5, np.float32),
        view_clips=np.array([0, 1]),
        view_crops=np.array(["centre", "centre"]),
        view_starts=np.array([[0, 4], [0, 5], [0, 6]], np.int32),
        skipped_rows=np.array([2]),
        skipped_labels=np.array([[1.0] + [0.0] * (num_classes - 1)]),
    )


LABELS = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
ONE_LABEL = [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
COST = {
    "gflops_per_view": 12.5,
    "profiler_gflops_per_view": 25.2,
    "convention": "as stated",
}


def writer(folder: Path, data: split.Split, **changes) -> results.ResultWriter:
    arguments = {"metric": "map", "merge": "max", "cost": COST, **changes}
    return results.ResultWriter(folder, data, **arguments)


def evaluation() -> scores.Evaluation:
    return scores.Evaluation(
        values={"map": 0.75, "wap": 0.7, "loss": 0.5},
        views=views(LABELS),
        ranking=metrics.AveragePrecision(
            mean=0.75,
            weighted=0.7,
            per_class=np.array([0.5, 1.0, np.nan]),
            positives=np.array([2, 2, 0]),
            classes_without_positive=[2],
        ),
    )


def confused() -> scores.Evaluation:
    """Video a is right, b and c are taken for class 2."""
    views_of_one = views(ONE_LABEL)
    view_scores = np.eye(3, dtype=np.float32)[[[0, 0], [2, 2], [2, 2]]]
    views_of_one = dataclasses.replace(views_of_one, view_scores=view_scores)
    return scores.evaluate(views_of_one, metric="top_k", merge="mean")


def events(folder: Path) -> dict[str, tf.Tensor]:
    """Values by tag of every event file in a folder."""
    found = {}
    for path in folder.glob("events*"):
        for raw in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(raw.numpy())
            found |= {value.tag: value.tensor for value in event.summary.value}
    return found


def test_a_result_is_a_line_a_json_and_its_scores(data, tmp_path, capfd):
    path = writer(tmp_path, data).write(evaluation(), step=30)
    assert path == tmp_path / "results" / "test_50-30.json"
    result = json.loads(path.read_text())
    assert result["metrics"] == {"map": 0.75, "wap": 0.7, "loss": 0.5}
    assert result["average_precision"] == {"walk": 0.5, "run": 1.0}
    assert result["classes_without_positive"] == ["sit"]
    assert result["coverage"]["share"] == 0.75
    assert result["num_videos"] == 3 and result["metric"] == "map"
    assert result["views"] == {"views": 2, "clips": 2, "crops": 1, "merge": "max"}
    assert result["cost"]["gflops_per_example"] == 25.0
    assert result["cost"]["profiler_gflops_per_example"] == 50.4
    assert {"step", "config_checksum", "git_revision"} <= set(result)
    screen = capfd.readouterr().out
    assert "map 0.7500  wap 0.7000  loss 0.5000" in screen
    assert "(3 videos x 2 x 1 views, coverage 75.0%)" in screen
    assert (
        "GFLOPs: 12.5 per view, 25 per video (one per multiply-add, Tables I-IX);"
        " 25.2 per view, 50.4 per video (two, Tables XI-XIII)"
    ) in screen
    assert "1 videos could not be built and count as ranked last" in screen
    assert "1 classes have no positive" in screen
    stored = np.load(path.with_suffix(".scores.npz"))
    assert stored["ids"].tolist() == ["a", "b", "c"]
    assert stored["view_scores"].shape == (3, 2, 3)
    assert not list(path.parent.glob(".*"))  # no temporary file is left


def test_accuracy_is_told_by_class_and_by_what_is_confused(data, tmp_path, capfd):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        path = writer(tmp_path, data, metric="top_k").write(confused(), step=30)
        tf.summary.flush()
    result = json.loads(path.read_text())
    assert result["metrics"]["top1"] == pytest.approx(1 / 3)
    assert result["metrics"]["mean_class"] == 0.5
    assert result["accuracy_by_class"] == {"walk": 1.0, "run": 0.0}
    assert result["most_confused"] == [
        {"class": "run", "taken_for": "sit", "videos": 2}
    ]
    screen = capfd.readouterr().out
    assert "1 videos could not be built and are left out" in screen
    assert path.with_suffix(".txt").read_text() in screen
    assert "2 videos of 'run' taken for 'sit'" in screen
    picture = tf.io.decode_png(path.with_suffix(".png").read_bytes())
    found = events(tmp_path)
    assert {"eval/by_class", "eval/confusion"} <= set(found)
    shown = tf.io.decode_png(tf.make_ndarray(found["eval/confusion"])[2])
    np.testing.assert_array_equal(shown, picture)


def test_too_many_classes_make_no_picture(data, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "DRAWN_CLASSES", 2)
    path = writer(tmp_path, data, metric="top_k").write(confused(), step=30)
    assert not path.with_suffix(".png").exists()


def test_a_quick_result_has_names_of_its_own(data, tmp_path):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        path = writer(tmp_path, data, phase="eval_quick").write(evaluation(), step=30)
        tf.summary.flush()
    assert path.name == "test_50-quick-30.json"
    assert set(events(tmp_path)) == {"eval_quick/by_class"}


def test_a_model_that_cannot_be_counted_has_a_result(data, tmp_path, capfd):
    path = writer(tmp_path, data, cost={}).write(evaluation(), step=30)
    assert json.loads(path.read_text())["cost"] == {}
    assert "GFLOPs" not in capfd.readouterr().out


def test_the_table_is_best_first_and_names_the_empty_class():
    table = results.class_table(
        CLASSES, evaluation().ranking.per_class, [2, 2, 0], value="AP"
    )
    assert [line.split()[0] for line in table.splitlines()] == [
        "class", "run", "walk", "sit",
    ]  # fmt: skip
    assert table.splitlines()[3].split() == ["sit", "–", "0"]


def test_the_configuration_is_written_beside_the_run(tmp_path):
    @gin.configurable("config_test_written", module="tests")
    def function(a=1, b=2):
        return a, b

    gin.parse_config("config_test_written.a = 4")
    function()
    results.write_config(tmp_path / "run")
    assert "config_test_written.a = 4" in (tmp_path / "run/config.gin").read_text()
    operative = (tmp_path / "run/operative_config.gin").read_text()
    assert "config_test_written.b = 2" in operative
