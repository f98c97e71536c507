"""Real training processes, killed at random moments and started again."""

import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests import test_end_to_end, tiny

LIMIT_SECONDS = 240.0
MOST_SECONDS_ALIVE = 1.2  # after the first steps of a process, before it is killed
STEPS = {3: 150, 6: 400}  # by the number of kills: more than they leave time for
EVERYTHING_DRAWN = (
    "BATCH_SIZE = 4",
    "train.steps_per_loop = 4",
    "train.checkpoint_every_steps = 10",
    "train.mixup_alpha = 0.4",
    "train.color_jitter_share = 0.5",
    "train/clip_dataset.flip = True",
    "build_x2p1d.dropout_rate = 0.3",
    "build_optimizer.ema_decay = 0.9",
)


def command(steps: int, data_dir: Path, model_dir: Path) -> list[str]:
    return tiny.command(
        tiny.QUICKSTART,
        *EVERYTHING_DRAWN,
        f"TOTAL_STEPS = {steps}",
        data_dir=data_dir,
        model_dir=model_dir,
    )


def wait_for(text: str, log: Path, process: subprocess.Popen) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.01)


def live_and_die(arguments, log: Path, *, number: int, draws: random.Random) -> None:
    """Starts a process and sends it a signal, mostly when it has trained a little."""
    process = tiny.start(arguments, log)
    try:
        if draws.random() < 0.8:
            wait_for("train  step", log, process)
        time.sleep(draws.uniform(0, MOST_SECONDS_ALIVE))
        process.send_signal(number)
        status = process.wait(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    text = log.read_text()
    if "SIGTERM: stopped and saved" in text:
        assert status == 143, text
    else:  # while it starts there is nothing to save
        assert status == -number, text
        assert number == signal.SIGKILL or "train  step" not in text


@pytest.mark.parametrize(
    "kills, seed",
    [(3, 1), *(pytest.param(6, seed, marks=pytest.mark.slow) for seed in range(2, 6))],
)
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(
    kills, seed, tiny_data, tmp_path
):
    draws, steps = random.Random(seed), STEPS[kills]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    log = tmp_path / "whole.log"
    unbroken = tiny.start(command(steps, tiny_data, whole), log)
    arguments = command(steps, tiny_data, broken)
    try:
        for life in range(kills):
            number = (signal.SIGKILL, signal.SIGTERM)[life % 2]
            path = tmp_path / f"{life}.log"
            live_and_die(arguments, path, number=number, draws=draws)
        path = tmp_path / "last.log"
        text = test_end_to_end.finish(tiny.start(arguments, path), path)
        test_end_to_end.finish(unbroken, log)
    finally:
        unbroken.kill()
    assert "going on from checkpoint" in text
    assert f"train  step {steps}/{steps}" in text
    want, got = (state(folder, steps) for folder in (whole, broken))
    assert want.keys() == got.keys()
    assert {name.split("/")[0] for name in want} >= {"model", "optimizer", "scores"}
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    assert test_end_to_end.metrics_of(whole, steps) == test_end_to_end.metrics_of(
        broken, steps
    )


def state(model_dir: Path, steps: int) -> dict[str, np.ndarray]:
    """Weights, optimizer, averages, scores; not how often it has saved."""
    found = test_end_to_end.tensors(model_dir / f"ckpt-{steps}")
    found = {name: found[name] for name in found if not name.startswith("save_counter")}
    with np.load(model_dir / "results" / f"test-{steps}.scores.npz") as scores:
        return found | {f"scores/{name}": scores[name] for name in scores.files}
