"""A learning rate range test: the rate grows from step to step, the loss is watched.

Source: "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186, §3.3.
"""

import dataclasses
import io
import math
from collections.abc import Callable
from pathlib import Path

import gin
import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import files, report, results, trainer

SMOOTHING = 0.9  # of the exponential mean of the losses, which starts unbiased
EXPLODED = 4.0  # times the lowest smoothed loss
NEAR = 0.2  # of the way down: so near to its lowest is a loss in the valley
LEAST_FALL = 0.01  # of the first loss: less is noise
MARGIN = 10.0  # between what is suggested and what explodes
LEAST_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Found:
    """What a range test has seen.

    Attributes:
      rates: of each step.
      losses: before that step's update.
      smoothed: their exponential mean.
      exploded_at: the rate at which it was stopped; None if it came to its end.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    exploded_at: float | None

    @property
    def valley(self) -> tuple[float, float] | None:
        """From which rate to which the smoothed loss is near its lowest.

        None where it never falls.
        """
        first, lowest = self.smoothed[0], self.smoothed.min()
        if first - lowest < LEAST_FALL * first:
            return None
        bottom = self.smoothed.argmin()
        higher = np.flatnonzero(self.smoothed[bottom:] > first)  # than at the start
        end = bottom + higher[0] if len(higher) else len(self.rates)
        near = np.flatnonzero(self.smoothed[:end] <= lowest + NEAR * (first - lowest))
        return float(self.rates[near[0]]), float(self.rates[near[-1]])

    @property
    def suggested_rate(self) -> float | None:
        """The valley's middle, well below what explodes; None without a valley."""
        if self.valley is None:
            return None
        middle = math.sqrt(math.prod(self.valley))
        return min(middle, (self.exploded_at or math.inf) / MARGIN)


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """A test of `num_steps` rates from `start_rate` to `end_rate`, both included."""

    num_steps: int
    start_rate: float
    end_rate: float

    @property
    def schedule(self) -> tf_keras.optimizers.schedules.LearningRateSchedule:
        """For the optimizer."""
        return tf_keras.optimizers.schedules.ExponentialDecay(
            self.start_rate,
            decay_steps=self.num_steps - 1,
            decay_rate=self.end_rate / self.start_rate,
        )

    def run(
        self,
        loop: orbit.AbstractTrainer,
        on_step: Callable[[int, float, float], None] = lambda done, rate, loss: None,
    ) -> Found:
        """Runs the steps until the last, or until the loss explodes.

        Args:
          loop: of trainer.Trainer, whose optimizer has the schedule; its model changes.
          on_step: called after each step with the number of steps done, the rate and
            the smoothed loss.

        Raises:
          ValueError: for broken data, or a first loss that is not finite.
        """
        growth = (self.end_rate / self.start_rate) ** (1 / (self.num_steps - 1))
        losses, smoothed, mean = [], [], 0.0
        exploded_at = None
        for step in range(self.num_steps):
            rate = self.start_rate * growth**step
            try:
                loss = loop.train(tf.constant(1))["train/loss"]
            except trainer.NonFiniteLossError:
                if not losses:
                    raise
                exploded_at = rate
                break
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            losses.append(loss)
            smoothed.append(mean / (1 - SMOOTHING ** (step + 1)))
            on_step(step + 1, rate, smoothed[-1])
            if smoothed[-1] > EXPLODED * min(smoothed):
                exploded_at = rate
                break
        rates = self.start_rate * growth ** np.arange(len(losses))
        return Found(rates, np.array(losses), np.array(smoothed), exploded_at)


@gin.configurable
def find_lr(
    learning_rate: float,
    *,
    num_steps: int = 200,
    start_rate: float | None = None,
    end_rate: float | None = None,
) -> RangeTest:
    """The range test of --mode=find_lr.

    Args:
      learning_rate: the recipe's, of its batch.
      num_steps: at least LEAST_STEPS.
      start_rate: above 0; None for a 10,000th of the recipe's.
      end_rate: above start_rate; None for 100 times the recipe's.

    Raises:
      ValueError: for numbers out of range.
    """
    start = learning_rate / 10_000 if start_rate is None else start_rate
    end = 100 * learning_rate if end_rate is None else end_rate
    if num_steps < LEAST_STEPS:
        raise ValueError(
            f"find_lr.num_steps must be at least {LEAST_STEPS}, got {num_steps}."
        )
    if not 0 < start < end:
        raise ValueError(
            f"find_lr: wanted 0 < start_rate < end_rate, got {start} and {end}. Set"
            " find_lr.start_rate and find_lr.end_rate."
        )
    return RangeTest(num_steps, start, end)


def write(
    model_dir: Path,
    found: Found,
    *,
    learning_rate: float,
    per_rate: float,
    title: str,
) -> Path:
    """Writes `results/find_lr.json` and `.png`, and says which rate is suggested.

    Args:
      model_dir: folder of the run.
      found: by the test.
      learning_rate: the recipe's, of its batch.
      per_rate: what LEARNING_RATE is of a rate: where it is stated for another batch
        than the recipe's, less than 1 or more.
      title: of the picture.

    Returns:
      The JSON's path.
    """
    path = model_dir / "results" / "find_lr.json"
    suggested, valley = found.suggested_rate, found.valley
    binding = None if suggested is None else float(f"{suggested * per_rate:.2g}")
    results.write_json(
        path,
        {
            "suggested_rate": suggested,
            "suggested_learning_rate": binding,
            "valley": valley,
            "exploded_at": found.exploded_at,
            "recipe_rate": learning_rate,
            "rates": found.rates.tolist(),
            "losses": found.losses.tolist(),
            "smoothed": found.smoothed.tolist(),
        },
    )
    png = picture(found, learning_rate=learning_rate, title=title)
    files.write(path.with_suffix(".png"), png)
    what = "the loss does not fall at any rate"
    if suggested is not None:
        of_batch = "" if per_rate == 1 else f" (a rate of {suggested:.2g})"
        what = (
            f"LEARNING_RATE = {binding:g}{of_batch} is suggested: the loss is near its"
            f" lowest from {valley[0]:.2g} to {valley[1]:.2g}"
        )
    end = "does not explode"
    if found.exploded_at is not None:
        end = f"explodes at {found.exploded_at:.2g}"
    report.say(
        f"find_lr  {what}, and {end}; the recipe's is {learning_rate:.2g}"
        f"  -> {path.with_suffix('.png')}"
    )
    return path


def picture(found: Found, *, learning_rate: float, title: str) -> bytes:
    """Loss against rate, as a PNG.

    Args:
      found: by the test.
      learning_rate: the recipe's, of its batch.
      title: above it.
    """
    from matplotlib import figure  # takes a while

    sheet = figure.Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axis = sheet.subplots()
    axis.plot(found.rates, found.losses, color="0.8", linewidth=1, label="loss")
    axis.plot(found.rates, found.smoothed, color="C0", linewidth=2, label="smoothed")
    low, first = found.smoothed.min(), found.smoothed[0]
    fall = max(first - low, 0.05 * first)
    axis.set_ylim(low - 0.4 * fall, first + fall)  # not to where it explodes
    if found.valley is not None:
        axis.axvspan(*found.valley, color="C2", alpha=0.1, label="near its lowest")
        label = f"{found.suggested_rate:.2g}: suggested"
        axis.axvline(found.suggested_rate, color="C2", linewidth=2, label=label)
    label = f"{learning_rate:.2g}: the recipe's"
    axis.axvline(learning_rate, color="0.3", linestyle=":", linewidth=2, label=label)
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss")
    axis.set_title(title, fontsize=11)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper left", frameon=False, fontsize=9)
    file = io.BytesIO()
    sheet.savefig(file, format="png")
    return file.getvalue()
