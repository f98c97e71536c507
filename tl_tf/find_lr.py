"""A learning rate range test: the rate grows from step to step, the loss is watched.

Source: "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186, §3.3.
"""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import gin
import numpy as np
import orbit
import tensorflow as tf
import tf_keras

from tl_tf import report, trainer

SMOOTHING = 0.9  # of the exponential mean of the losses, which starts unbiased
EXPLODED = 4.0  # times the lowest smoothed loss
SLOPE_SHARE = 0.1  # of the steps, over which a slope is fitted
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
    def lowest_rate(self) -> float:
        """At which the smoothed loss is lowest."""
        return float(self.rates[self.smoothed.argmin()])

    @property
    def suggested_rate(self) -> float | None:
        """At which the smoothed loss falls fastest, before it is lowest.

        None where it never falls.
        """
        width = max(5, round(SLOPE_SHARE * len(self.rates)))
        last = int(self.smoothed.argmin()) + 1
        if last < width:
            return None
        x = np.log10(self.rates)
        slopes = [
            np.polyfit(x[i : i + width], self.smoothed[i : i + width], 1)[0]
            for i in range(last - width + 1)
        ]
        steepest = int(np.argmin(slopes))
        if slopes[steepest] >= 0:
            return None
        return float(10 ** x[steepest : steepest + width].mean())


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
    suggested = found.suggested_rate
    binding = None if suggested is None else float(f"{suggested * per_rate:.2g}")
    report.write_json(
        path,
        {
            "suggested_rate": suggested,
            "suggested_learning_rate": binding,
            "lowest_rate": found.lowest_rate,
            "exploded_at": found.exploded_at,
            "recipe_rate": learning_rate,
            "rates": found.rates.tolist(),
            "losses": found.losses.tolist(),
            "smoothed": found.smoothed.tolist(),
        },
    )
    png = picture(found, learning_rate=learning_rate, title=title)
    report.write_bytes(path.with_suffix(".png"), png)
    what = "the loss never falls"
    if suggested is not None:
        of_batch = "" if per_rate == 1 else f" (a rate of {suggested:.2g})"
        what = f"LEARNING_RATE = {binding:g}{of_batch}: there the loss falls fastest"
    end = (
        f"explodes at {found.exploded_at:.2g}" if found.exploded_at else "stays finite"
    )
    report.say(
        f"find_lr  {what}; it is lowest at {found.lowest_rate:.2g} and {end}; the"
        f" recipe's is {learning_rate:.2g}  -> {path.with_suffix('.png')}"
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
    top = found.smoothed[: max(1, len(found.smoothed) // 4)].max()
    low, high = found.smoothed.min(), max(found.smoothed.min() * 2, top)
    axis.set_ylim(low - 0.1 * (high - low), high + 0.4 * (high - low))
    marks = [
        (found.suggested_rate, "C2", "-", "falls fastest: suggested"),
        (found.lowest_rate, "C1", "--", "lowest"),
        (learning_rate, "0.3", ":", "the recipe's"),
    ]
    for rate, color, style, name in marks:
        if rate is not None:
            axis.axvline(
                rate,
                color=color,
                linestyle=style,
                linewidth=1.5,
                label=f"{rate:.2g}: {name}",
            )
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("training loss")
    axis.set_title(title, fontsize=11)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    file = io.BytesIO()
    sheet.savefig(file, format="png")
    return file.getvalue()
