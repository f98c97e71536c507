"""What every input pipeline hands over: batches, and what is known before reading."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

PADDING = -1  # index of a row that only fills the last batch


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of a data set as batches of uint8 pixels; "..." is T, H, W or H, W.

    Attributes:
      batches: for training, an endless stream of {pixels uint8 [B, ..., 3], labels
        float32 [B, K]}; for evaluation, `num_batches` of {pixels uint8 [B, V, ..., 3],
        labels float32 [B, K], mask float32 [B], index int32 [B]} and, for videos,
        {starts int32 [B, V]} in source frames.  `examples[index]` names a row; where
        `mask` is 0 there is nothing, only padding.
      dataset: name of the data set.
      split: its name.
      classes: names, in the order of the labels.
      num_examples: videos or images in the split, on all hosts.
      num_batches: of an evaluation, the same on every host; None for training.
      num_views: V of an evaluation; 1 for training.
      examples: of an evaluation, what must be seen once each: their ids.
      rows: where each of `examples` stands in the annotations; ties are broken by it.
      skipped: of an evaluation, what could not be built: {"id", "row", "labels"}.
      coverage: what share of the official split is there; goes into every result.
      facts: what else people want to know, as "12 fps; 3 shorter than a clip, looped".
      noun: what an example is: "videos" or "images".
      explain: says of an error out of next(iterator) what is at fault, and where.
    """

    batches: tf.data.Dataset
    dataset: str
    split: str
    classes: list[str]
    num_examples: int
    coverage: dict[str, Any]
    explain: Callable[[tf.errors.OpError], str]
    num_batches: int | None = None
    num_views: int = 1
    examples: Sequence[str] = ()
    rows: Sequence[int] = ()
    skipped: Sequence[dict[str, Any]] = ()
    facts: str = ""
    noun: str = "videos"
