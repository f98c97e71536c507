import socket
import subprocess
import sys

import gin
import pytest
import tensorflow as tf

from tests import tiny
from tl_tf import data_service, experiment, session, startup

NUM_EPOCHS = 8  # enough for both workers to take part
NO_WARMUP = ("build_schedule.warmup_steps = 0",)  # there are one or two steps


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def address():
    """A dispatcher and two workers, in a process: theirs is an endless stream."""
    program = (
        "import tensorflow as tf; s = tf.data.experimental.service;"
        "d = s.DispatchServer(); address = d.target.split('://')[1];"
        "ws = [s.WorkerServer(s.WorkerConfig(address)) for _ in range(2)];"
        "print(address, flush=True); d.join()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], text=True, stdout=subprocess.PIPE
    )
    yield f"grpc://{process.stdout.readline().strip()}"
    process.kill()
    process.wait()


def open_train(data_dir, address, **arguments):
    gin.clear_config()
    tiny.load(tiny.QUICKSTART)
    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    one = session.Session("train", data_dir, data_dir, one_device, address)
    return session.open_split(one, is_training=True, **arguments)


def clips_of(data, count):
    return [batch["pixels"].numpy().tobytes() for batch in data.batches.take(count)]


def test_workers_hand_over_each_example_at_most_once(address, tiny_data):
    # Where a clip is cropped is drawn for each epoch and video: no two are the same.
    count = NUM_EPOCHS * tiny.TRAIN_VIDEOS
    alone = clips_of(open_train(tiny_data, None, batch_size=1, seed=3), 2 * count)
    assert len(set(alone)) == 2 * count
    data = open_train(tiny_data, address, batch_size=1, seed=3)
    found = clips_of(data, count)
    assert len(set(found)) == count
    assert set(found) <= set(alone)


def test_errors_of_the_service_are_told_from_those_of_the_data(address, tiny_data):
    data = open_train(tiny_data, address, batch_size=2)
    found = data.explain(
        tf.errors.NotFoundError(None, None, "x.tfrecord; No such file")
    )
    assert found.startswith(f"--data_service={address}: x.tfrecord; No such file. See")
    found = data.explain(tf.errors.DataLossError(None, None, "corrupted"))
    assert "no record of split 'train' is damaged" in found


def test_a_run_through_the_service_goes_on_without_its_place(
    address, tiny_data, tmp_path, capfd
):
    def train(steps, address):
        gin.clear_config()
        tiny.load(tiny.QUICKSTART, f"TOTAL_STEPS = {steps}", *NO_WARMUP)
        experiment.run(
            "train",
            model_dir=tmp_path,
            data_dir=tiny_data,
            tpu=None,
            data_service=address,
        )

    train(1, address)
    text = f"data   through {address}: each example at most once an epoch"
    assert text in capfd.readouterr().out
    with pytest.raises(ValueError, match="ckpt-1: was saved with --data_service"):
        train(2, None)
    train(2, address)
    assert "going on from checkpoint ckpt-1" in capfd.readouterr().out
    names = dict(tf.train.list_variables(str(tmp_path / "ckpt-2")))
    assert not [name for name in names if name.startswith("iterator")]


def test_a_run_with_a_place_in_the_data_does_not_lose_it(address, tiny_data, tmp_path):
    for steps, service in ((1, None), (2, address)):
        gin.clear_config()
        tiny.load(tiny.QUICKSTART, f"TOTAL_STEPS = {steps}", *NO_WARMUP)
        arguments = {"model_dir": tmp_path, "data_dir": tiny_data, "tpu": None}
        if service is None:
            experiment.run("train", **arguments)
            continue
        with pytest.raises(ValueError, match="ckpt-1: was saved without --data_serv"):
            experiment.run("train", **arguments, data_service=service)


@pytest.mark.slow
def test_the_processes_are_started_from_the_command_line(tiny_data):
    ports = free_port(), free_port()
    target = f"grpc://127.0.0.1:{ports[0]}"
    program = [sys.executable, "-m", "tl_tf.data_service"]
    options = {"cwd": tiny.ROOT, "text": True, "stdout": subprocess.PIPE}
    dispatcher = subprocess.Popen([*program, f"--port={ports[0]}"], **options)
    worker = None
    try:
        assert dispatcher.stdout.readline() == f"dispatcher listens at {ports[0]}\n"
        worker = subprocess.Popen(
            [
                *program,
                f"--port={ports[1]}",
                f"--dispatcher={target}",
                "--host=127.0.0.1",
            ],
            **options,
        )
        assert worker.stdout.readline() == f"worker listens at {ports[1]}\n"
        data = open_train(tiny_data, target, batch_size=2, seed=3)
        assert len(set(clips_of(data, 6))) == 6
    finally:
        for process in (dispatcher, worker):
            if process is not None:
                process.kill()
                process.wait()


def test_what_counts_broken_records_is_refused(tiny_data):
    tiny.load(tiny.QUICKSTART, "train/clip_dataset.max_bad_records = 0.1")
    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    one = session.Session("train", tiny_data, tiny_data, one_device, "grpc://a:1")
    with pytest.raises(ValueError, match="Set train/clip_dataset.max_bad_records = 0"):
        session.open_split(one, is_training=True, batch_size=2)


@pytest.mark.parametrize("mode", ["eval", "fewshot", "save_npz", "inspect"])
def test_what_does_not_train_is_refused(mode):
    with pytest.raises(ValueError, match=f"train_and_eval, profile, not {mode}: an"):
        startup.check_data_service("grpc://127.0.0.1:9", mode)


def test_a_dead_dispatcher_is_answered_at_once():
    with pytest.raises(ValueError, match="--data_service=grpc://127.0.0.1:9: nothing"):
        startup.check_data_service("grpc://127.0.0.1:9", "train")
    with pytest.raises(ValueError, match="wanted grpc://host:port of its dispatcher"):
        startup.check_data_service("127.0.0.1:9", "train")


def test_a_worker_without_a_dispatcher_says_so(monkeypatch):
    arguments = ["data_service", "--port=0", "--dispatcher=grpc://127.0.0.1:9"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="grpc://127.0.0.1:9: nothing answered"):
        data_service.main()
