"""Putting the weights of a file into a model that may differ from the one they are of.

What may differ is written here: the grid, the class token, the classes and the layer
before the classifier.  Anything else is an error, unless the caller allows it by name.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tl_tf.layers import embedding

POSITION = "Transformer/posembed_input/pos_embedding"
CLASS_TOKEN = "cls"
PRE_LOGITS = "pre_logits/"
HEADS = ("output_projection/", "head/", "classifier/")

OUTCOMES = {
    "loaded": "the file's values, as they are",
    "resized": "the file's position embeddings, stretched over another grid",
    "replaced": "kept at the start's values, as the file's do not fit",
    "new": "kept at the start's values, as the file has none",
    "left out": "in the file, without a place in the model",
    "unused": "in the file, and allowed to be without a place",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one name; a shape is None where the name is missing."""

    name: str
    outcome: str
    file_shape: tuple[int, ...] | None
    model_shape: tuple[int, ...] | None


def format_rows(rows: Sequence[Row]) -> str:
    """A table to print: a line per name, and the number of each outcome below."""
    width = max(len(row.name) for row in rows) if rows else 0
    lines = [
        f"{row.name:<{width}}  {row.outcome:<8}  {_text(row.file_shape)} ->"
        f" {_text(row.model_shape)}"
        for row in rows
    ]
    counts = {name: sum(row.outcome == name for row in rows) for name in OUTCOMES}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return "\n".join([*lines, summary or "nothing"])


def assign(
    arrays: Mapping[str, np.ndarray],
    variables: Mapping[str, tf.Variable],
    *,
    where: str,
    grid: Sequence[int] | None = None,
    from_grid: Sequence[int] | None = None,
    allow_unused: Sequence[str] = (),
    allow_new: Sequence[str] = (),
) -> list[Row]:
    """Assigns arrays to the variables of their names: all that fit, or none.

    A head of other classes stays at its start, and so does one behind a pre-logits
    layer that only the file or only the model has.  A class token that only the file
    has is left out with its place; one that only the model has starts afresh with it.

    Args:
      arrays: the file's values by name.
      variables: the model's, by the same kind of names.
      where: the file, for messages.
      grid: the model's H and W, if it has position embeddings.
      from_grid: the file's; None for the model's if that fits, or else a square.
      allow_unused: patterns of names that may be in the file alone, as "opt/*".
      allow_new: patterns of names that may be missing in the file or of another shape,
        as "*TokenLearner*".

    Returns:
      A row for every name of the model and the file.

    Raises:
      ValueError: names do not fit, or values are not finite.
    """
    plan = _Plan(arrays, variables, where=where, allow_new=allow_new)
    replaces_head = plan.replaces_head()
    for name, variable in variables.items():
        if name not in arrays:
            plan.start_afresh(name)
        elif replaces_head and name.startswith(HEADS):
            plan.add(name, "replaced")
        elif name == POSITION:
            plan.add_position(grid=grid or (1, variable.shape[1]), from_grid=from_grid)
        else:
            plan.take(name)
    for name in arrays:
        if name not in variables:
            if _may_be_alone(name):
                plan.add(name, "left out")
            elif _matches(name, allow_unused):
                plan.add(name, "unused")
            else:
                plan.problems.append(f"{name} (in the file alone)")
    plan.check()
    for name, value in plan.values.items():
        variables[name].assign(value)
    return plan.rows


class _Plan:
    """What goes where; nothing is assigned before all is known to fit."""

    def __init__(self, arrays, variables, *, where: str, allow_new: Sequence[str]):
        self.arrays, self.variables = arrays, variables
        self.where, self.allow_new = where, allow_new
        self.values: dict[str, np.ndarray] = {}
        self.rows: list[Row] = []
        self.problems: list[str] = []

    def add(self, name: str, outcome: str) -> None:
        in_file, in_model = self.arrays.get(name), self.variables.get(name)
        self.rows.append(
            Row(
                name,
                outcome,
                None if in_file is None else tuple(in_file.shape),
                None if in_model is None else tuple(in_model.shape),
            )
        )

    def replaces_head(self) -> bool:
        """Whether the classifier is another, or reads another representation."""
        kernel = f"{PRE_LOGITS}kernel"
        if (kernel in self.arrays) != (kernel in self.variables):
            return True
        return any(
            name.startswith(HEADS)
            and name in self.arrays
            and self.arrays[name].shape != tuple(variable.shape)
            for name, variable in self.variables.items()
        )

    def start_afresh(self, name: str) -> None:
        if _may_be_alone(name) or _matches(name, self.allow_new):
            self.add(name, "new")
        else:
            self.problems.append(f"{name} (not in the file)")

    def take(
        self, name: str, value: np.ndarray | None = None, outcome="loaded"
    ) -> None:
        value = self.arrays[name] if value is None else value
        shape = tuple(self.variables[name].shape)
        if value.shape == (1, 1, *shape):  # a 1x1 convolution is a matrix here
            value = value.reshape(shape)
        if value.shape == shape:
            self.values[name] = self._finite(name, value)
            self.add(name, outcome)
        elif _matches(name, self.allow_new):
            self.add(name, "replaced")
        else:
            self.problems.append(
                f"{name} ({_text(value.shape)} in the file, {_text(shape)} here)"
            )

    def add_position(
        self, *, grid: Sequence[int], from_grid: Sequence[int] | None
    ) -> None:
        """Resizes the grid's places; those of the class token come or go with it."""
        table = self.arrays[POSITION]
        in_file, in_model = (
            int(CLASS_TOKEN in n) for n in (self.arrays, self.variables)
        )
        places = (table.shape[1] if table.ndim == 3 else 0) - in_file
        from_grid = tuple(from_grid or self._grid_of(places, grid))
        resized = embedding.resize_position_embedding(
            table, from_grid=from_grid, to_grid=grid, num_prefix=in_file
        )
        if in_file and not in_model:
            resized = resized[:, 1:]
        elif in_model and not in_file:
            start = self.variables[POSITION].numpy()[:, :1]
            if start.shape[2] == resized.shape[2]:
                resized = np.concatenate([start, resized], axis=1)
        self.take(
            POSITION, resized, "loaded" if from_grid == tuple(grid) else "resized"
        )
        if in_file != in_model:
            outcome, shape = ("left out" if in_file else "new"), (table.shape[-1],)
            self.rows.append(
                Row(
                    f"{POSITION}[0]",
                    outcome,
                    shape if in_file else None,
                    shape if in_model else None,
                )
            )

    def _grid_of(self, places: int, grid: Sequence[int]) -> tuple[int, int]:
        if places == grid[0] * grid[1]:
            return tuple(grid)
        side = math.isqrt(max(places, 0))
        if side * side != places or not places:
            raise ValueError(
                f"{self.where}: {POSITION} has {places} places, which is no square."
                " Give the grid of the model it is of by from_grid, as (14, 20)."
            )
        return side, side

    def _finite(self, name: str, value: np.ndarray) -> np.ndarray:
        value = value.astype(self.variables[name].dtype.as_numpy_dtype)
        if not np.isfinite(value).all():
            raise ValueError(
                f"{self.where}: {name} holds values that are not finite. The file is"
                " damaged, or its run diverged: take another."
            )
        return value

    def check(self) -> None:
        if self.problems:
            more = f", and {len(self.problems) - 5} more" * (len(self.problems) > 5)
            raise ValueError(
                f"{self.where}: {len(self.problems)} names do not fit this model:"
                f" {', '.join(self.problems[:5])}{more}. Build the model that the file"
                " is of, or allow names by patterns in allow_new (of the model) and"
                " allow_unused (of the file)."
            )


def _may_be_alone(name: str) -> bool:
    """Whether it may be in the file or in the model alone."""
    return name == CLASS_TOKEN or name.startswith(PRE_LOGITS)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _text(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"
