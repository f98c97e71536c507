"""Whole runs: killed and gone on with, evaluated again, and learning."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import shards, tiny
from tl_tf import config, experiment

STEPS = 40
EVERY_STEP = (
    f"TOTAL_STEPS = {STEPS}",
    "BATCH_SIZE = 4",
    "train.steps_per_loop = 2",
    "train.checkpoint_every_steps = 2",
    "build_optimizer.ema_decay = 0.9",
)
LIMIT_SECONDS = 240.0


def tensors(checkpoint: Path) -> dict[str, np.ndarray]:
    """Everything numeric in a checkpoint: weights, optimizer, averages, counters."""
    reader = tf.train.load_checkpoint(str(checkpoint))
    types = reader.get_variable_to_dtype_map()
    names = [name for name, dtype in types.items() if dtype != tf.string]
    return {name: reader.get_tensor(name) for name in names if "iterator" not in name}


def metrics_of(model_dir: Path, step: int = STEPS) -> dict[str, float]:
    return json.loads((model_dir / "results" / f"test-{step}.json").read_text())[
        "metrics"
    ]


def start(data_dir: Path, model_dir: Path, *, log: str, mode: str = "train_and_eval"):
    return tiny.start(
        tiny.command(
            tiny.QUICKSTART,
            *EVERY_STEP,
            data_dir=data_dir,
            model_dir=model_dir,
            mode=mode,
        ),
        model_dir.with_name(log),
    )


def finish(process, log: Path) -> str:
    """Waits for the process; returns what it has printed."""
    try:
        status = process.wait(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    text = log.read_text()
    assert status == 0, text
    return text


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory) -> Path:
    """A folder with an unbroken run, and one that was killed and started again."""
    folder = tmp_path_factory.mktemp("runs")
    whole, broken = folder / "whole", folder / "broken"
    first = start(tiny_data, broken, log="first.log")
    other = start(tiny_data, whole, log="whole.log")
    try:
        limit = time.monotonic() + LIMIT_SECONDS
        while not (broken / "checkpoint").exists():  # names the newest one
            assert first.poll() is None, (folder / "first.log").read_text()
            assert time.monotonic() < limit
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        again = start(tiny_data, broken, log="again.log")
        finish(other, folder / "whole.log")
        finish(again, folder / "again.log")
    finally:
        for process in (first, other):
            process.kill()
    return folder


def test_a_killed_run_goes_on_to_the_same_weights(runs):
    first = (runs / "first.log").read_text()
    again = (runs / "again.log").read_text()
    assert f"step {STEPS}/{STEPS}" not in first  # it was killed before the end
    assert "going on from checkpoint ckpt-" in again
    assert f"train  step  2/{STEPS}" not in again
    whole = tensors(runs / "whole" / f"ckpt-{STEPS}")
    broken = tensors(runs / "broken" / f"ckpt-{STEPS}")
    assert whole.keys() == broken.keys()
    assert {name.split("/")[0] for name in whole} >= {"model", "optimizer"}
    for name, values in whole.items():
        np.testing.assert_array_equal(broken[name], values, err_msg=name)
    assert metrics_of(runs / "broken") == metrics_of(runs / "whole")


def test_evaluation_alone_finds_what_training_found(runs, tiny_data):
    model_dir = runs / "whole"
    trained = metrics_of(model_dir)
    result = model_dir / "results" / f"test-{STEPS}.json"
    result.unlink()
    process = start(tiny_data, model_dir, log="eval.log", mode="eval")
    printed = finish(process, runs / "eval.log")
    assert "train  step" not in printed
    assert metrics_of(model_dir) == trained


def test_a_finished_run_is_only_evaluated_again(runs, tiny_data, capfd):
    model_dir = runs / "broken"
    before = (model_dir / f"ckpt-{STEPS}.index").stat().st_mtime_ns
    (model_dir / "results" / f"test-{STEPS}.json").unlink()
    tiny.load(tiny.QUICKSTART, *EVERY_STEP)
    experiment.run("train_and_eval", model_dir=model_dir, data_dir=tiny_data, tpu=None)
    printed = capfd.readouterr().out
    assert f"going on from checkpoint ckpt-{STEPS}" in printed
    assert "train  step" not in printed
    assert (model_dir / f"ckpt-{STEPS}.index").stat().st_mtime_ns == before
    assert metrics_of(model_dir) == pytest.approx(metrics_of(runs / "whole"), rel=1e-5)


def fading_videos(count: int, *, seed: int) -> dict[str, shards.Video]:
    """Grey pictures that get brighter or darker, from white to black at once.

    Whatever the class, all levels are as likely in every frame: one frame says nothing.
    """
    rng = np.random.default_rng(seed)
    videos = {}
    for i in range(count):
        step = (1, -1)[i % 2] * int(rng.integers(12, 25))
        levels = (rng.integers(256) + step * np.arange(16)) % 256
        videos[f"{seed}-{i}"] = shards.Video(shards.grey_jpegs(levels), [i % 2])
    return videos


@pytest.mark.parametrize(
    "num_frames, is_learnt", [(6, True), (1, False)], ids=["clips", "single_frames"]
)
def test_clips_are_learnt_and_single_frames_tell_nothing(
    num_frames, is_learnt, tmp_path
):
    data_dir, model_dir = tmp_path / "data", tmp_path / "run"
    shards.write_dataset(data_dir, [fading_videos(64, seed=1)])
    shards.write_dataset(data_dir, [fading_videos(24, seed=2)], split="test")
    tiny.load(
        tiny.QUICKSTART,
        "DATASET = 'toy'",
        f"FPS = {shards.FPS}",
        f"NUM_FRAMES = {num_frames}",
        "build_missing_data.dataset = None",
        "TOTAL_STEPS = 60",
        "BATCH_SIZE = 16",
        "LEARNING_RATE = 0.5",
        "build_x2p1d.width = 0.25",
        "train.steps_per_loop = 10",
    )
    experiment.run("train_and_eval", model_dir=model_dir, data_dir=data_dir, tpu=None)
    score = metrics_of(model_dir, step=60)["map"]
    assert score > 0.9 if is_learnt else score < 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    "bindings, lowest, highest",
    [((), 0.9, 1.0), (("NUM_FRAMES = 1", "EVAL_CLIPS = 8"), 0.0, 0.5)],
    ids=["clips", "single_frames"],
)
def test_the_quickstart_learns_motion(bindings, lowest, highest, tmp_path):
    config.load([tiny.QUICKSTART], list(bindings))
    experiment.run(
        "train_and_eval", model_dir=tmp_path / "run", data_dir=tmp_path, tpu=None
    )
    assert lowest < metrics_of(tmp_path / "run", step=1200)["map"] <= highest
