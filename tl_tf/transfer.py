"""Putting the weights of a file into a model that may differ from the one they are of.

What may differ is written here: the grid, the class token, the classes and the layer
before the classifier; and a video model may start from an image model.  Anything else
is an error, unless the caller allows it by name.
"""

import dataclasses
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tl_tf.layers import embedding

POSITION = "Transformer/posembed_input/pos_embedding"
CLASS_TOKEN = "cls"
# The transformers of a factorised encoder; the first is an image model's.
SPATIAL, TEMPORAL = "SpatialTransformer", "TemporalTransformer"
_TABLES = {  # of position embeddings, with the class token that has the first place
    POSITION: CLASS_TOKEN,
    POSITION.replace("Transformer", SPATIAL): f"{CLASS_TOKEN}_{SPATIAL}",
    POSITION.replace("Transformer", TEMPORAL): f"{CLASS_TOKEN}_{TEMPORAL}",
}
PATCH_KERNEL = "embedding/kernel"
INFLATIONS = ("central_frame", "average_frame")
PRE_LOGITS = "pre_logits/"
HEADS = ("output_projection/", "head/", "classifier/")

OUTCOMES = {
    "loaded": "the file's values, as they are",
    "inflated": "the file's patch kernel, put into that of a tubelet",
    "resized": "the file's position embeddings, stretched over another grid",
    "tiled": "the file's position embeddings, repeated for every temporal slice",
    "resized and tiled": "stretched over another grid, then repeated",
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
    width = max((len(row.name) for row in rows), default=0)
    column = max((len(row.outcome) for row in rows), default=0)
    lines = [
        f"{row.name:<{width}}  {row.outcome:<{column}}  {_text(row.file_shape)} ->"
        f" {_text(row.model_shape)}"
        for row in rows
    ]
    counts = {name: sum(row.outcome == name for row in rows) for name in OUTCOMES}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return "\n".join([*lines, summary or "nothing"])


def inflate_kernel(kernel: np.ndarray, num_frames: int, inflate: str) -> np.ndarray:
    """Makes a tubelet's kernel of a patch's: frames all alike embed as their image.

    Source: Section 5.2; ViViT, arXiv 2103.15691, Section 3.4.
    Args:
      kernel: [P, P, 3, C].
      num_frames: of the tubelet, at least 1.
      inflate: "central_frame" puts the kernel at frame num_frames // 2, with zeros
        before and after; "average_frame" a share of it at every frame.

    Returns:
      [num_frames, P, P, 3, C].

    Raises:
      ValueError: for another word.
    """
    if inflate not in INFLATIONS:
        raise ValueError(
            f"warm_start.inflate must be one of {INFLATIONS}, got {inflate!r}."
        )
    if inflate == "average_frame":
        return np.stack([kernel / num_frames] * num_frames)
    inflated = np.zeros([num_frames, *kernel.shape], kernel.dtype)
    inflated[num_frames // 2] = kernel
    return inflated


def assign(
    arrays: Mapping[str, np.ndarray],
    variables: Mapping[str, tf.Variable],
    *,
    where: str,
    grid: Sequence[int] | None = None,
    num_slices: int = 1,
    from_grid: Sequence[int] | None = None,
    inflate: str = "central_frame",
    allow_unused: Sequence[str] = (),
    allow_new: Sequence[str] = (),
) -> list[Row]:
    """Assigns arrays to the variables of their names: all that fit, or none.

    A head of other classes stays at its start, and so does one behind a pre-logits
    layer that only the file or only the model has.  A class token that only the file
    has is left out with its place; one that only the model has starts afresh with it.

    A video model takes an image model's positions, stretched over its grid, for each of
    its temporal slices, and the class token's once; those of a video model it stretches
    in time too, linearly.  A factorised encoder takes an image model's Transformer as
    its spatial one, and its temporal one starts afresh.

    Args:
      arrays: the file's values by name.
      variables: the model's, by the same kind of names.
      where: the file, for messages.
      grid: the model's H and W, if it has position embeddings.
      num_slices: the model's T after embedding; 1 for images.
      from_grid: the file's H and W; None for the model's if that fits, or else squares.
      inflate: how a patch's kernel becomes a tubelet's, as `inflate_kernel`.
      allow_unused: patterns of names that may be in the file alone, as "opt/*".
      allow_new: patterns of names that may be missing in the file or of another shape,
        as "*TokenLearner*".

    Returns:
      A row for every name of the model and the file.

    Raises:
      ValueError: names do not fit, or values are not finite.
    """
    if any(name.startswith(SPATIAL) for name in variables):
        arrays = {_as_spatial(name): value for name, value in arrays.items()}
    plan = _Plan(arrays, variables, where=where, allow_new=allow_new)
    replaces_head = plan.replaces_head()
    for name, variable in variables.items():
        if name not in arrays:
            plan.start_afresh(name)
        elif replaces_head and name.startswith(HEADS):
            plan.add(name, "replaced")
        elif name == PATCH_KERNEL:
            plan.add_kernel(inflate)
        elif name in _TABLES:
            plan.add_positions(
                name,
                grid=grid or (1, variable.shape[1]),
                num_slices=num_slices,
                from_grid=from_grid,
            )
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
        is_temporal = name.startswith(TEMPORAL) and self._is_of_images()
        if _may_be_alone(name) or is_temporal or _matches(name, self.allow_new):
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

    def add_kernel(self, inflate: str) -> None:
        """Inflates a patch's kernel where a tubelet's is wanted."""
        kernel, shape = self.arrays[PATCH_KERNEL], self.variables[PATCH_KERNEL].shape
        if kernel.shape == tuple(shape[1:]):
            self.take(
                PATCH_KERNEL, inflate_kernel(kernel, shape[0], inflate), "inflated"
            )
        else:
            self.take(PATCH_KERNEL)

    def add_positions(
        self,
        name: str,
        *,
        grid: Sequence[int],
        num_slices: int,
        from_grid: Sequence[int] | None,
    ) -> None:
        """Resizes the grid's places; those of the class token come or go with it."""
        table = self.arrays[name]
        in_file, in_model = (
            int(_TABLES[name] in names) for names in (self.arrays, self.variables)
        )
        places = (table.shape[1] if table.ndim == 3 else 0) - in_file
        if name.startswith(TEMPORAL):
            old, new = (places, 1, 1), (num_slices, 1, 1)
        else:
            new = (1 if name.startswith(SPATIAL) else num_slices, *grid)
            old = self._grid_of(name, places, new, from_grid)
        resized = embedding.resize_position_embedding(
            table, from_grid=old, to_grid=new, num_prefix=in_file
        )
        if in_file and not in_model:
            resized = resized[:, 1:]
        elif in_model and not in_file:
            start = self.variables[name].numpy()[:, :1]
            if start.shape[2] == resized.shape[2]:
                resized = np.concatenate([start, resized], axis=1)
        is_tiled = old[0] == 1 < new[0]
        is_resized = old[1:] != new[1:] or (old[0] != new[0] and not is_tiled)
        words = ["resized"] * is_resized + ["tiled"] * is_tiled
        self.take(name, resized, " and ".join(words) or "loaded")
        if in_file != in_model:
            outcome, shape = ("left out" if in_file else "new"), (table.shape[-1],)
            self.rows.append(
                Row(
                    f"{name}[0]",
                    outcome,
                    shape if in_file else None,
                    shape if in_model else None,
                )
            )

    def _is_of_images(self) -> bool:
        """Whether an image model is put into one with tubelets."""
        in_file, in_model = (
            names.get(PATCH_KERNEL) for names in (self.arrays, self.variables)
        )
        if in_file is None or in_model is None:
            return False
        return in_file.ndim < len(in_model.shape)

    def _grid_of(
        self,
        name: str,
        places: int,
        grid: tuple[int, int, int],
        from_grid: Sequence[int] | None,
    ) -> tuple[int, int, int]:
        """The file's T, H and W: the model's if they fit, or else the only reading."""
        slices, cells = grid[0], grid[1] * grid[2]
        is_one_slice = slices == 1 or self._is_of_images()
        if from_grid is not None:
            area = max(math.prod(from_grid), 1)
            return (1 if is_one_slice else max(places // area, 1), *from_grid)
        if places == cells:
            return (1, *grid[1:])
        if places == slices * cells and not is_one_slice:
            return grid
        kernel = self.arrays.get(PATCH_KERNEL)
        counts = {1} if is_one_slice else {slices}
        if kernel is not None and kernel.ndim == 4:  # it may be of images
            counts.add(1)
        sides = {count: math.isqrt(max(places, 0) // count) for count in counts}
        readings = {
            (count, side, side)
            for count, side in sides.items()
            if side and count * side * side == places
        }
        if not is_one_slice and places > 0 and places % cells == 0:
            readings.add((places // cells, *grid[1:]))
        if len(readings) == 1:
            return readings.pop()
        found = " or ".join(_text(reading) for reading in sorted(readings))
        reason = f"may be {found}" if found else "is no square"
        raise ValueError(
            f"{self.where}: {name} has {places} places, which {reason}. Give the grid"
            " of the model it is of by from_grid, as (14, 20)."
        )

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
    return name in _TABLES.values() or name.startswith(PRE_LOGITS)


def _as_spatial(name: str) -> str:
    """An image model's name in a factorised encoder."""
    if name == CLASS_TOKEN:
        return f"{CLASS_TOKEN}_{SPATIAL}"
    return re.sub("^Transformer/", f"{SPATIAL}/", name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _text(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape)) or "scalar"
