"""Real training processes, killed at random moments and started again."""

import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests import test_end_to_end, tiny

LIMIT_SECONDS = 600.0  # where a machine has much else to do
KILLS, STEPS = 3, 200  # more steps than there is time for between the kills
MOST_LINES, MOST_SECONDS = 6, 0.1  # of progress, of 4 steps each, and then, to a kill
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


def wait_for(lines: int, log: Path, process: subprocess.Popen) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while log.read_text().count("train  step") < lines:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.01)


def live_and_die(arguments, log: Path, *, number: int, draws: random.Random) -> None:
    """Starts a process and sends it a signal: as it starts, or after some steps."""
    process = tiny.start(arguments, log)
    try:
        if draws.random() < 0.8:
            wait_for(draws.randint(1, MOST_LINES), log, process)
            time.sleep(draws.uniform(0, MOST_SECONDS))
        else:
            time.sleep(draws.uniform(0, 4))
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
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 9))]
)
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(
    seed, tiny_data, tmp_path
):
    draws = random.Random(seed)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    log = tmp_path / "whole.log"
    unbroken = tiny.start(command(STEPS, tiny_data, whole), log)
    arguments = command(STEPS, tiny_data, broken)
    try:
        for life in range(KILLS):
            number = (signal.SIGKILL, signal.SIGTERM)[(life + seed) % 2]
            path = tmp_path / f"{life}.log"
            live_and_die(arguments, path, number=number, draws=draws)
        path = tmp_path / "last.log"
        text = test_end_to_end.finish(tiny.start(arguments, path), path)
        test_end_to_end.finish(unbroken, log)
    finally:
        unbroken.kill()
    assert "going on from checkpoint" in text
    assert f"train  step {STEPS}/{STEPS}" in text
    want, got = (state(folder, STEPS) for folder in (whole, broken))
    assert want.keys() == got.keys()
    assert {name.split("/")[0] for name in want} >= {"model", "optimizer", "scores"}
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)
    assert test_end_to_end.metrics_of(whole, STEPS) == test_end_to_end.metrics_of(
        broken, STEPS
    )


def state(model_dir: Path, steps: int) -> dict[str, np.ndarray]:
    """Weights, optimizer, averages, scores; not how often it has saved."""
    found = test_end_to_end.tensors(model_dir / f"ckpt-{steps}")
    found = {name: found[name] for name in found if not name.startswith("save_counter")}
    with np.load(model_dir / "results" / f"test-{steps}.scores.npz") as scores:
        return found | {f"scores/{name}": scores[name] for name in scores.files}
