"""What a run tells people while it goes: lines on the screen."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tl_tf import files


def say(text: str) -> None:
    """Prints a line for the user, past the file that takes Orbit's own lines."""
    print(text, file=sys.__stdout__, flush=True)


def time_left(seconds: float) -> str:
    """A duration for people: `45s`, `12m30s`, `3h05m`."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds // 60 % 60:02d}m"


class TrainProgress:
    """An Orbit action: one line after each loop of training steps.

    A long loop, and the first step, which is traced, give signs of life as well.
    """

    EVERY_SECONDS = 30.0

    def __init__(self, total_steps: int, step: tf.Variable, *, noun: str):
        self._total_steps = total_steps
        self._noun = noun
        self._step = step
        self._first_step: int | None = None
        self._start = 0.0
        self._last_line: float | None = None
        self._is_traced = False
        self._loop = (0, 0, 0.0)  # its first step; from how many on it is timed, when

    def before_step(self, done: int, of: int) -> None:
        """Called before each step of a loop with how many of them it has done."""
        now = time.perf_counter()
        if done == 0:  # only now: within a loop, nothing is read from a device
            self._loop = int(self._step.numpy()), 0, now
            if self._last_line is not None:  # there may have been an evaluation
                self._last_line = now
        elif not self._is_traced:
            self._is_traced = True
            self._loop = self._loop[0], done, now
        first, timed_from, start = self._loop
        if self._last_line is None:
            say("train  tracing and compiling the first step: some take minutes")
            self._last_line = now
        elif done > timed_from and now - self._last_line > self.EVERY_SECONDS:
            say(
                f"train  at step {first + done},"
                f" {(now - start) / (done - timed_from):.2g} s each;"
                f" the loss comes with step {first + of}"
            )
            self._last_line = now

    def __call__(self, output: dict[str, Any]) -> None:
        """Prints step, loss, rate, input wait and time left."""
        self._last_line = time.perf_counter()
        step = int(self._step.numpy())
        left = ""
        if self._first_step is None:  # the first loop holds tracing: no rate yet
            self._first_step, self._start = step, time.perf_counter()
        elif step > self._first_step:
            rate = (time.perf_counter() - self._start) / (step - self._first_step)
            left = f"  {time_left(rate * (self._total_steps - step))} left"
        skipped = output.get("train/skipped_steps", 0)
        if skipped:
            left += f"  {skipped} skipped: not finite"
        width = len(str(self._total_steps))
        say(
            f"train  step {step:{width}d}/{self._total_steps}"
            f"  loss {output['train/loss']:.4f}"
            f"  rate {output['train/learning_rate']:.4g}"
            f"  {output['input/examples_per_second']:.3g} {self._noun}/s"
            f"  input wait {output['input/wait_share']:.0%}{left}"
        )


class EvalProgress:
    """Called after each evaluation batch; prints a line every few seconds."""

    EVERY_SECONDS = 10.0

    def __init__(self):
        self._start = self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Prints batches done and time left."""
        now = time.perf_counter()
        if done == 0:
            self._start = self._last = now
        elif now - self._last > self.EVERY_SECONDS and done < total:
            self._last = now
            left = (now - self._start) / done * (total - done)
            say(f"eval   batch {done}/{total}  {time_left(left)} left")


class PassedOver:
    """Names the records that training passed over, each once, and counts them.

    Args:
      path: of a JSON of their descriptions, which outlives a restart.
      describe: of a shard and a record: what is wrong with it.
    """

    def __init__(self, path: Path, describe: Callable[[int, int], str]):
        self._path, self._describe = path, describe
        self._found: dict[str, str] = {}
        if path.is_file():
            self._found = json.loads(path.read_text(encoding="utf-8"))

    def __call__(self, passed_over: dict[str, tf.Tensor]) -> dict[str, float]:
        """Takes what passing.drop_failing tells; returns TensorBoard tags and values.

        Of more than it names at a time, the rest is counted alone.
        """
        new = {}
        for shard, record in passed_over["places"][-1].numpy().tolist():
            key = f"{shard}-{record}"
            if shard >= 0 and key not in self._found and key not in new:
                new[key] = self._describe(shard, record)
                say(f"input  passed over {new[key]}")
        if new:
            self._found |= new
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self._path, self._found)
        return {
            "input/bad_records": len(self._found),
            "input/passed_over": int(passed_over["count"][-1]),
        }
