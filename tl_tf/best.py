"""Which evaluation of a training was the best so far; its checkpoint, kept apart."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_tf import durable, files

FOLDER = "best"  # within a run's
LOWER_IS_BETTER = ("loss",)  # of all that evaluations measure


class Best:
    """Remembers the value of every evaluation, beside the checkpoint of the best one.

    `evaluations.json` is written after each, so that a restarted run judges as the
    unbroken one.

    Args:
      folder: of the checkpoint and of `evaluations.json`; need not be there.
      metric: by which they are judged; the highest value is the best, of "loss" the
        lowest, and of equal ones the first.
      known: what the evaluations measure.
      patience: evaluations in a row without a better one after which training is over;
        None for never.

    Raises:
      ValueError: for another metric than what is known, or than the folder's; a
        patience below 1; a record that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        metric: str,
        *,
        known: Sequence[str],
        patience: int | None = None,
    ):
        if metric not in known:
            raise ValueError(
                f"train.best_metric must be one of {tuple(known)}, which this recipe's"
                f" evaluation measures, got {metric!r}."
            )
        if patience is not None and patience < 1:
            raise ValueError(
                f"train.patience_evals must be at least 1 or None, got {patience}."
            )
        self.metric = metric
        self.folder = folder
        self._path = folder / "evaluations.json"
        self._patience = patience
        self._values = self._read()

    def start(self, step: int) -> bool:
        """Takes what evaluations up to a step have found; later ones will be done anew.

        Returns:
          Whether the one of this very step is among them.
        """
        self._values = {s: v for s, v in self._values.items() if s <= step}
        return step in self._values

    def add(self, step: int, values: Mapping[str, float], checkpoint: Path) -> None:
        """Judges one evaluation, and keeps its checkpoint if it is the best so far.

        Args:
          step: later than those before.
          values: what it measured, by name.
          checkpoint: what was evaluated, without an ending.

        Raises:
          OSError: the disk is full, or does not answer.
        """
        self._values[step] = float(values[self.metric])
        if self.step == step:  # before it is recorded: a killed run judges it again
            durable.link(checkpoint, self.folder)
        self._write()
        for other in durable.prefixes(self.folder):
            if durable.step_of(other) != self.step:
                durable.delete(other)

    def facts(self, step: int, values: Mapping[str, float] | None) -> dict[str, Any]:
        """What a result says of the best.

        Args:
          step: of that result.
          values: what it measured, if it is judged and was not added yet; else None.
        """
        seen = dict(self._values)
        if values is not None:
            seen[step] = float(values[self.metric])
        best = self._best_of(seen)
        return {
            "metric": self.metric,
            "value": seen[best],
            "step": best,
            "checkpoint": f"{FOLDER}/ckpt-{best}",
        }

    @property
    def step(self) -> int:
        """Of the best evaluation."""
        return self._best_of(self._values)

    @property
    def value(self) -> float:
        """Of the best evaluation."""
        return self._values[self.step]

    @property
    def evals_ago(self) -> int:
        """How many evaluations came after the best one."""
        return sum(step > self.step for step in self._values)

    @property
    def is_over(self) -> bool:
        """Whether patience has come to its end."""
        return (
            self._patience is not None
            and bool(self._values)
            and self.evals_ago >= self._patience
        )

    def _best_of(self, values: Mapping[int, float]) -> int:
        sign = -1 if self.metric in LOWER_IS_BETTER else 1

        def rank(step: int) -> tuple[float, int]:
            value = sign * values[step]
            return (-math.inf if math.isnan(value) else value), -step

        return max(values, key=rank)

    def _read(self) -> dict[int, float]:
        if not self._path.is_file():
            return {}
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            metric = record["metric"]
            values = {int(step): float(v) for step, v in record["values"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self._path}: wanted the values of the evaluations so far, got"
                f" {type(error).__name__}. Delete {self.folder} to judge anew."
            ) from None
        if metric != self.metric:
            raise ValueError(
                f"{self._path}: this run keeps its best checkpoint by {metric!r}, but"
                f" train.best_metric is {self.metric!r}. Set it back, delete"
                f" {self.folder}, or use another --model_dir."
            )
        return values

    def _write(self) -> None:
        record = {
            "metric": self.metric,
            "best_step": self.step,
            "values": {str(step): value for step, value in self._values.items()},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self._path, record)
