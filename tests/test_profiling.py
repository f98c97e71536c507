import itertools
import json
import time

import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tl_tf import experiment, profiling, results

BATCH = 3


class Loop:
    """A trainer whose steps take `compute` seconds, its batches `input` each."""

    def __init__(self, *, input: float, compute: float):
        self.iterator = self._batches(input)
        self._compute = compute

    def _batches(self, seconds: float):
        for _ in itertools.count():
            time.sleep(seconds)
            yield {"pixels": np.zeros([BATCH, 5, 7, 3])}

    def train(self, num_steps: tf.Tensor) -> dict[str, float]:
        start, waited = time.perf_counter(), 0.0
        for _ in range(int(num_steps)):
            before = time.perf_counter()
            next(self.iterator)
            waited += time.perf_counter() - before
            time.sleep(self._compute)
        elapsed = time.perf_counter() - start
        return {
            "input/examples_per_second": BATCH * int(num_steps) / elapsed,
            "input/wait_share": waited / elapsed,
        }


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(profiling, "PHASE_SECONDS", 0.1)


@pytest.mark.parametrize(
    "input_seconds, compute_seconds, limit",
    [(0.03, 0.01, "input"), (0.01, 0.03, "compute")],
)
def test_the_slower_one_limits(quick, input_seconds, compute_seconds, limit):
    loop = Loop(input=input_seconds, compute=compute_seconds)
    found = profiling.profile(loop, tf.distribute.get_strategy())
    assert found.limit == limit
    assert found.input == pytest.approx(BATCH / input_seconds, rel=0.3)
    assert found.compute == pytest.approx(BATCH / compute_seconds, rel=0.3)
    assert found.together == pytest.approx(BATCH / 0.04, rel=0.3)  # one after the other
    assert found.wait_share == pytest.approx(input_seconds / 0.04, abs=0.15)


def test_a_line_and_a_json_say_it(tmp_path, capfd):
    found = profiling.Profile(input=3.14, compute=5.02, together=2.9, wait_share=0.384)
    path = results.write_profile(tmp_path, found, noun="clips")
    assert capfd.readouterr().out == (
        "profile  input limits: 3.14 clips/s against 5.02 of compute; together 2.9, and"
        f" a step waits 38% of its time  -> {path}\n"
    )
    result = json.loads(path.read_text())
    assert result["limit"] == "input" and result["wait_share"] == 0.384


def test_a_recipe_is_profiled_and_learns_nothing(quick, tiny_data, tmp_path, capfd):
    tiny.load(tiny.QUICKSTART)
    experiment.run("profile", model_dir=tmp_path, data_dir=tiny_data, tpu=None)
    assert " limits: " in capfd.readouterr().out
    result = json.loads((tmp_path / "results" / "profile.json").read_text())
    assert min(result[name] for name in ("input", "compute", "together")) > 0
    assert tf.train.latest_checkpoint(str(tmp_path)) is None
