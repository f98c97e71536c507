import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

from tl_tf import evaluator, metrics, report
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
        skipped=[{"id": "d", "row": 3, "labels": [0]}],
    )


def evaluation() -> evaluator.Evaluation:
    return evaluator.Evaluation(
        values={"map": 0.75, "wap": 0.7, "loss": 0.5},
        ranking=metrics.AveragePrecision(
            mean=0.75,
            weighted=0.7,
            per_class=np.array([0.5, 1.0, np.nan]),
            positives=np.array([2, 2, 0]),
            classes_without_positive=[2],
        ),
        ids=["a", "b", "c"],
        labels=np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]]),
        view_scores=np.zeros([3, 2, 3], np.float32),
        view_starts=np.zeros([3, 2], np.int32),
    )


def events(folder: Path) -> dict[str, tf.Tensor]:
    """Values by tag of every event file in a folder."""
    found = {}
    for path in folder.glob("events*"):
        for raw in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(raw.numpy())
            found |= {value.tag: value.tensor for value in event.summary.value}
    return found


def test_a_result_is_a_line_a_json_and_its_scores(data, tmp_path, capfd):
    writer = report.ResultWriter(tmp_path, data, {"views": 2, "merge": "max"})
    path = writer.write(evaluation(), step=30)
    assert path == tmp_path / "results" / "test_50-30.json"
    result = json.loads(path.read_text())
    assert result["metrics"] == {"map": 0.75, "wap": 0.7, "loss": 0.5}
    assert result["average_precision"] == {"walk": 0.5, "run": 1.0}
    assert result["classes_without_positive"] == ["sit"]
    assert result["coverage"]["share"] == 0.75
    assert result["num_videos"] == 3 and result["views"]["merge"] == "max"
    assert {"step", "config_checksum", "git_revision"} <= set(result)
    screen = capfd.readouterr().out
    assert "map 0.7500  wap 0.7000  loss 0.5000" in screen
    assert "1 videos could not be built and count as ranked last" in screen
    assert "1 classes have no positive" in screen
    scores = np.load(path.with_suffix(".scores.npz"))
    assert scores["ids"].tolist() == ["a", "b", "c"]
    assert scores["view_scores"].shape == (3, 2, 3)
    assert not list(path.parent.glob(".*"))  # no temporary file is left


def test_the_table_is_best_first_and_names_the_empty_class():
    table = report.class_table(CLASSES, evaluation().ranking.per_class, [2, 2, 0])
    assert [line.split()[0] for line in table.splitlines()] == [
        "class", "run", "walk", "sit",
    ]  # fmt: skip
    assert table.splitlines()[3].split() == ["sit", "–", "0"]


def test_pictures_and_text_reach_tensorboard(tmp_path):
    frames = np.zeros([3, 4, 20, 30, 3], np.uint8)
    labels = evaluation().labels.astype(np.float32)
    batch = {"pixels": tf.constant(frames), "labels": tf.constant(labels)}
    maps = np.random.default_rng(0).random([3, 4, 2, 3, 5])
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        report.show_inputs("train/inputs", batch, CLASSES, step=1)
        report.show_token_maps(frames, labels, maps, CLASSES, step=1)
        report.show_config(0)
        tf.summary.flush()
    found = events(tmp_path)
    assert {"train/inputs", "eval/token_maps", "config"} <= set(found)
    width, height, *pictures = tf.make_ndarray(found["eval/token_maps"])
    assert int(height) > 100 and len(pictures) == report.SHOWN_EXAMPLES
    assert pictures[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "seconds, text", [(0, "0s"), (59.9, "59s"), (61, "1m01s"), (11_100, "3h05m")]
)
def test_durations(seconds, text):
    assert report.time_left(seconds) == text
