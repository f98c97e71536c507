"""Several processes on this machine as several hosts: the real run.py, TF_CONFIG."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tests import test_resume, tiny
from tl_tf import durable, runtime

LIMIT_SECONDS = 600.0  # where a machine has much else to do
# Of the others, after one is killed: docs/SCALE.md states it.
END_SECONDS = 120.0
NUM_STEPS = 6
# The batch is the whole split, and its statistics are taken over all of it: then the
# hosts, which have a part of the shards each, see in a step what one process sees.
BINDINGS = (
    f"BATCH_SIZE = {tiny.TRAIN_VIDEOS}",
    "LEARNING_RATE = 0.1",
    f"TOTAL_STEPS = {NUM_STEPS}",
    "build_x2p1d.batch_norm = 'sync'",
    "train.steps_per_loop = 1",
    "train.checkpoint_every_steps = 1",
)


def command(data_dir, model_dir, *bindings):
    return tiny.command(
        tiny.QUICKSTART, *BINDINGS, *bindings, data_dir=data_dir, model_dir=model_dir
    )


@contextlib.contextmanager
def hosts_of(arguments, num_hosts, folder):
    """Starts them; whatever happens, none is left."""
    folder.mkdir(exist_ok=True)
    hosts, logs = tiny.start_hosts(arguments, num_hosts, folder)
    try:
        yield hosts, logs
    finally:
        for host in hosts:
            host.kill()
            host.wait()


def finish(arguments, num_hosts, folder):
    with hosts_of(arguments, num_hosts, folder) as (hosts, logs):
        statuses = [host.wait(timeout=LIMIT_SECONDS) for host in hosts]
    assert statuses == [0] * num_hosts, [log.read_text() for log in logs]
    return [log.read_text() for log in logs]


def check_like_one(model_dir, one_process):
    want, got = tiny.losses(one_process), tiny.losses(model_dir)
    assert list(want) == [*range(1, NUM_STEPS + 1)]
    assert got == pytest.approx(want, rel=1e-4)
    name = f"results/test-{NUM_STEPS}.json"
    want, got = (json.loads((p / name).read_text()) for p in (one_process, model_dir))
    assert got["num_videos"] == tiny.TEST_VIDEOS
    assert got["metrics"] == pytest.approx(want["metrics"], rel=1e-3)


@pytest.fixture(scope="module")
def shards_for_four(tmp_path_factory):
    """As many shards in each split as there are hosts, and videos in every one."""
    data_dir = tmp_path_factory.mktemp("shards_for_four")
    tiny.build_data(data_dir, num_shards=4)
    return data_dir


@pytest.fixture(scope="module")
def one_process(shards_for_four, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_process")
    process = tiny.start(command(shards_for_four, folder / "run"), folder / "log")
    assert process.wait(timeout=LIMIT_SECONDS) == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_have_the_loss_curve_and_the_scores_of_one_process(
    num_hosts, one_process, shards_for_four, tmp_path
):
    model_dir = tmp_path / "run"
    printed = finish(command(shards_for_four, model_dir), num_hosts, tmp_path / "logs")
    check_like_one(model_dir, one_process)
    assert f"device {num_hosts} replicas" in printed[0]
    assert "GFLOPs: " in printed[0]
    for host in range(1, num_hosts):
        assert "train  step" not in printed[host]
        files = {p.name for p in (model_dir / f"host-{host:05d}").iterdir()}
        ours = {name for name in files if not name.startswith("ckpt-")}
        assert ours == {"checkpoint", "orbit.log"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    "signal_number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"]
)
def test_a_lost_host_ends_the_other_and_both_go_on_as_if_unbroken(
    victim, signal_number, one_process, shards_for_four, tmp_path
):
    model_dir = tmp_path / "run"
    folders = model_dir, model_dir / "host-00001"
    arguments = command(shards_for_four, model_dir)
    with hosts_of(arguments, 2, tmp_path / "logs") as (hosts, logs):
        wait_for(lambda: all(durable.is_sealed(f / "ckpt-2") for f in folders))
        hosts[victim].send_signal(signal_number)  # dead, or silent
        start = time.monotonic()
        status = hosts[1 - victim].wait(timeout=END_SECONDS)
        print(f"host {1 - victim} ended after {time.monotonic() - start:.1f} s")
    text = logs[1 - victim].read_text()
    assert status == 1, text
    message = f"run.py: host {1 - victim} of 2: another host ended or cannot be reached"
    assert text.count(message) == 1, text
    assert "Traceback" not in text
    assert not (model_dir / "results").exists()
    saved = [{p.stem for p in folder.glob("ckpt-*.sha256")} for folder in folders]
    newest, before = sorted(set.intersection(*saved), reverse=True)[:2]
    for name in saved[1]:  # as if host 1 had been lost before it saved `newest`
        if name >= newest:
            durable.delete(folders[1] / name)
    printed = finish(arguments, 2, tmp_path / "logs")
    line = f"{model_dir / newest}: not all hosts have it, so it is deleted"
    assert line in printed[0]
    assert f"train  going on from checkpoint {before}" in printed[0]
    check_like_one(model_dir, one_process)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_hosts_stop_together_and_go_on_as_if_unbroken(
    asked, one_process, shards_for_four, tmp_path
):
    model_dir = tmp_path / "run"
    arguments = command(shards_for_four, model_dir)
    with hosts_of(arguments, 2, tmp_path / "logs") as (hosts, logs):
        wait_for(lambda: durable.is_sealed(model_dir / "ckpt-1"))
        for host in asked:
            hosts[host].send_signal(signal.SIGTERM)
        statuses = [host.wait(timeout=END_SECONDS) for host in hosts]
    printed = [log.read_text() for log in logs]
    assert statuses == [143, 143], printed
    newest = durable.newest(model_dir).name
    assert durable.newest(model_dir / "host-00001").name == newest
    for text in printed:
        assert f"train  SIGTERM: stopped and saved as {newest};" in text
    assert not (model_dir / "results").exists()
    printed = finish(arguments, 2, tmp_path / "logs")
    assert f"train  going on from checkpoint {newest}" in printed[0]
    assert "so it is deleted" not in printed[0]
    check_like_one(model_dir, one_process)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_hosts_killed_at_random_moments_end_as_unbroken_ones(seed, tiny_data, tmp_path):
    """Bit for bit, with dropout, mixup, shuffling and averages.

    Of norms that replicas do not share, a checkpoint has the mean of their statistics:
    going on from it rounds otherwise than keeping them.
    """
    draws, steps = random.Random(seed), 60
    sync = "--gin_bindings=build_x2p1d.batch_norm = 'sync'"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish([*test_resume.command(steps, tiny_data, whole), sync], 2, tmp_path / "logs")
    arguments = [*test_resume.command(steps, tiny_data, broken), sync]
    for life in range(3):
        number = (signal.SIGKILL, signal.SIGTERM)[(life + seed) % 2]
        victims = draws.choice([[0], [1], [0, 1]])
        with hosts_of(arguments, 2, tmp_path / "logs") as (hosts, logs):
            # Of 4 steps each: by then there are two checkpoints.
            test_resume.wait_for(draws.randint(3, 4), logs[0], hosts[0])
            time.sleep(draws.uniform(0, 0.3))
            for victim in victims:
                hosts[victim].send_signal(number)
            statuses = [host.wait(timeout=END_SECONDS) for host in hosts]
        printed = [log.read_text() for log in logs]
        if number == signal.SIGTERM:
            assert statuses == [143, 143], printed
        else:
            wanted = [-number if host in victims else 1 for host in range(2)]
            assert statuses == wanted, printed
    printed = finish(arguments, 2, tmp_path / "logs")
    assert "train  going on from checkpoint" in printed[0]
    want, got = (test_resume.state(folder, steps) for folder in (whole, broken))
    assert want.keys() == got.keys()
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


@pytest.mark.parametrize("host", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_host_that_never_starts_is_waited_for_until_a_limit(host):
    """In a process of its own, as TensorFlow must not have started before."""
    code = "from tl_tf import runtime; runtime.START_SECONDS = 2.0;"
    code += "runtime.configure_runtime(None)"
    workers = [f"127.0.0.1:{port}" for port in tiny.free_ports(2)]
    task = {"type": "worker", "index": host}
    text = json.dumps({"cluster": {"worker": workers}, "task": task})
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny.ROOT,
        env={**os.environ, "TF_CONFIG": text},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    message = f"ValueError: TF_CONFIG: {workers[1 - host]} did not start within 2 s."
    assert message in done.stderr
    assert done.returncode == 1


def wait_for(condition):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < LIMIT_SECONDS
        time.sleep(0.02)


@pytest.mark.parametrize(
    "text",
    [
        "worker 0",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": null}}',
        '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]},'
        ' "task": {"type": "chief", "index": 0}}',
    ],
)
def test_a_tf_config_that_names_no_workers_is_refused(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="wanted the workers' addresses and which of"):
        runtime.configure_runtime(None)


def test_the_step_of_one_host_is_its_newest():
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    assert runtime.common_step([3, 5], one) == 5
    assert runtime.common_step([], one) is None


def test_errors_of_one_host_are_left_as_they_are():
    one = tf.distribute.OneDeviceStrategy("/cpu:0")
    with pytest.raises(tf.errors.UnavailableError, match="no disk"):
        with runtime.explain_lost_hosts(one):
            raise tf.errors.UnavailableError(None, None, "no disk")
