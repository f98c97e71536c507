import contextlib
import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.core.util import event_pb2

from tests import tiny, toy_model
from tl_tf import evaluating, experiment, training

# So that replicas and hosts can be compared with one: the batch is the whole split, and
# its statistics are taken over all of it.
WHOLE_SPLIT = (
    f"BATCH_SIZE = {tiny.TRAIN_VIDEOS}",
    "LEARNING_RATE = 0.1",
    "build_x2p1d.batch_norm = 'sync'",
    "train.steps_per_loop = 1",
    "train.checkpoint_every_steps = 1",
)
LIMIT_SECONDS = 240.0


@pytest.fixture
def two_replicas(monkeypatch):
    """configure_runtime gets the one mirrored strategy of this process."""
    strategy = toy_model.two_replicas()
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: strategy)


def run(data_dir: Path, model_dir: Path, *bindings: str, mode="train") -> None:
    tiny.load(tiny.QUICKSTART, *bindings)
    experiment.run(mode, model_dir=model_dir, data_dir=data_dir, tpu=None)


def weights(model_dir: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(model_dir / "ckpt-2"))
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith("model/")]
    return {name: reader.get_tensor(name) for name in names}


def metrics(model_dir: Path) -> dict[str, float]:
    return json.loads((model_dir / "results" / "test-2.json").read_text())["metrics"]


def check_same_run(model_dir: Path, other: Path) -> None:
    want, got = weights(other), weights(model_dir)
    assert got.keys() == want.keys()
    for name, values in want.items():
        np.testing.assert_allclose(
            got[name], values, rtol=1e-3, atol=1e-5, err_msg=name
        )
    assert metrics(model_dir) == pytest.approx(metrics(other), rel=1e-4)


@pytest.fixture(scope="module")
def one_replica(tiny_data, tmp_path_factory) -> Path:
    """The run of one process and one replica, with which others are compared.

    Alone, a replica may be compiled with synchronized norms; so it is.
    """
    model_dir = tmp_path_factory.mktemp("one_replica")
    compiled = "train.jit_compile = True"
    run(tiny_data, model_dir, *WHOLE_SPLIT, compiled, mode="train_and_eval")
    return model_dir


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("num_hosts", [2])
def test_two_hosts_train_and_evaluate_like_one(
    num_hosts, one_replica, tiny_data, tmp_path
):
    model_dir = tmp_path / "run"
    workers = [f"127.0.0.1:{free_port()}" for _ in range(num_hosts)]
    logs = [tmp_path / f"{host}.log" for host in range(num_hosts)]
    command = tiny.command(
        tiny.QUICKSTART, *WHOLE_SPLIT, data_dir=tiny_data, model_dir=model_dir
    )
    with contextlib.ExitStack() as stack:
        hosts = []
        for index, log in enumerate(logs):
            task = {"type": "worker", "index": index}
            text = json.dumps({"cluster": {"worker": workers}, "task": task})
            hosts.append(tiny.start(command, log, TF_CONFIG=text))
            stack.callback(hosts[-1].kill)
        statuses = [host.wait(timeout=LIMIT_SECONDS) for host in hosts]
    printed = [log.read_text() for log in logs]
    assert statuses == [0] * num_hosts, printed
    assert "train  step 2/2" in printed[0]
    assert "train  step" not in printed[1]  # the first host speaks for all
    check_same_run(model_dir, one_replica)
    for name, values in weights(model_dir).items():
        np.testing.assert_array_equal(
            weights(model_dir / "host-00001")[name], values, err_msg=name
        )
    assert not (model_dir / "host-00001" / "results").exists()


@pytest.mark.parametrize(
    "bindings, message",
    [
        (("BATCH_SIZE = 3",), "train.batch_size=3 does not divide into 2 replicas"),
        (
            ("eval/clip_dataset.batch_size = 5",),
            "evaluation's batch_size=5 does not divide into this host's 2",
        ),
        (
            ("train.accumulation_steps = 2",),
            "batch of 2 does not divide into 2 replicas x 2 accumulation",
        ),
        (
            ("build_x2p1d.batch_norm = 'sync'", "train.jit_compile = True"),
            "train.jit_compile=True cannot be had with batch_norm='sync' on 2 replicas",
        ),
    ],
)
def test_what_does_not_fit_two_replicas_is_refused(
    bindings, message, two_replicas, tiny_data, tmp_path
):
    replicas = "configure_runtime.num_cpu_replicas = 2"
    with pytest.raises(ValueError, match=message):
        run(tiny_data, tmp_path, replicas, *bindings, mode="train_and_eval")


@pytest.mark.slow
def test_compiled_local_norms_train_on_two_replicas(two_replicas, tiny_data, tmp_path):
    run(
        tiny_data,
        tmp_path,
        "configure_runtime.num_cpu_replicas = 2",
        "train.jit_compile = True",
    )
    assert all(np.isfinite(values).all() for values in weights(tmp_path).values())


def test_a_missing_data_set_says_how_to_build_it(tmp_path):
    bindings = ("DATASET = 'charades'", "build_missing_data.dataset = None")
    with pytest.raises(ValueError, match="python -m data.build charades"):
        run(tmp_path / "data", tmp_path / "run", *bindings)


def test_a_data_set_that_can_be_made_is_made(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("data.build.build", lambda *args: asked.append(args))
    with pytest.raises(ValueError, match="python -m data.build synthetic"):
        run(tmp_path / "data", tmp_path / "run")
    assert asked == [("synthetic", tmp_path / "data")]


def test_training_passes_over_a_damaged_record_and_goes_on(tiny_data, tmp_path, capfd):
    shutil.copytree(tiny_data / "synthetic", tmp_path / "synthetic")
    path = sorted((tmp_path / "synthetic").glob("*-train-*.tfrecord"))[0]
    content = bytearray(path.read_bytes())
    content[-500] ^= 1  # of its last record
    path.write_bytes(content)
    model_dir = tmp_path / "run"
    share = "train/clip_dataset.max_bad_records = 0.1"
    for steps in (8, 10):  # the second from the first's place in the data
        gin.clear_config()
        run(tmp_path, model_dir, f"TOTAL_STEPS = {steps}", share, mode="train_and_eval")
    printed = capfd.readouterr().out
    assert printed.count("input  passed over") == 1
    assert f"{path}: record " in printed and "wanted bytes that match" in printed
    assert "coverage 100.0%" in printed  # of the test, which lacks nothing
    (fault,) = json.loads((model_dir / "bad_records.json").read_text()).values()
    assert fault.startswith(f"{path}: record ")


def test_evaluation_without_a_checkpoint_is_refused(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint to evaluate"):
        run(tiny_data, tmp_path, mode="eval")


def test_evaluation_by_another_recipe_is_refused(one_replica, tiny_data):
    text = r"ckpt-2: does not fit this model"
    with pytest.raises(ValueError, match=text):
        run(tiny_data, one_replica, "build_x2p1d.num_tokens = 5", mode="eval")


@pytest.mark.parametrize(
    "step, every, expected",
    [(0, None, [10]), (0, 4, [4, 8, 10]), (5, 4, [8, 10]), (8, 4, [10]), (10, 4, [])],
)
def test_a_restarted_run_pauses_where_the_unbroken_one_did(step, every, expected):
    assert training._milestones(step, 10, every) == expected


def test_evaluations_before_the_end_may_be_of_one_view(tiny_data, tmp_path):
    bindings = (
        "eval/clip_dataset.num_crops = 3",
        "train.eval_every_steps = 1",
        "train.steps_per_loop = 1",
        "train.quick_eval = True",
        "train.color_jitter_share = 0.8",
        "train.grey_share = 0.1",
        "build_evaluator.views_at_once = 4",
    )
    run(tiny_data, tmp_path, *bindings, mode="train_and_eval")
    results = tmp_path / "results"
    assert sorted(path.name for path in results.glob("*.json")) == [
        "test-2.json",
        "test-quick-1.json",
    ]
    quick, full = (
        json.loads((results / name).read_text())
        for name in ("test-quick-1.json", "test-2.json")
    )
    assert quick["views"] == {"views": 1, "clips": 1, "crops": 1, "merge": "max"}
    assert full["views"] == {"views": 6, "clips": 2, "crops": 3, "merge": "max"}
    for cost, num_views in ((quick["cost"], 1), (full["cost"], 6)):
        per_view = full["cost"]["gflops_per_view"]
        assert cost["gflops_per_example"] == pytest.approx(num_views * per_view)
    tags = set()
    for path in (tmp_path / "tensorboard").rglob("events*"):
        for raw in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(raw.numpy())
            tags |= {(value.tag, event.step) for value in event.summary.value}
    steps = {(tag, step) for tag, step in tags if tag.endswith("/map")}
    assert steps == {("eval_quick/map", 1), ("eval/map", 2)}


@pytest.mark.parametrize("name", ["color_jitter_share", "grey_share"])
def test_a_share_out_of_range_is_refused(name, tiny_data, tmp_path):
    with pytest.raises(ValueError, match=f"train.{name} must be in 0..1, got 1.5"):
        run(tiny_data, tmp_path, f"train.{name} = 1.5")


def test_a_model_whose_cost_is_unknown_is_evaluated_all_the_same(capfd):
    class Cumulative(tf_keras.Model):
        def call(self, frames, training=False):
            return tf.cumsum(tf.reduce_mean(frames, axis=[1, 2, 3]), axis=1), {}

    spec = {"pixels": tf.TensorSpec([2, 1, 3, 5, 7, 3], tf.uint8)}
    data = SimpleNamespace(batches=SimpleNamespace(element_spec=spec))
    assert evaluating._cost_of_view(Cumulative(), data) == {}
    assert "GFLOPs are not counted: cost: " in capfd.readouterr().out


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="eval_every_steps must be at least 1, got 0"):
        training._milestones(0, 10, 0)
