"""What every input pipeline hands over: batches, and what is known before reading."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# What an iterator raises for a broken example: TensorFlow's message may quote it, and
# its bytes are no text.
ERRORS = (tf.errors.OpError, UnicodeDecodeError)

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
      num_crops: how many crops of each clip are among them, clip by clip.
      examples: of an evaluation, what must be seen once each: their ids.
      rows: where each of `examples` stands in the annotations; ties are broken by it.
      skipped: of an evaluation, what could not be built: {"id", "row", "labels"}.
      coverage: what share of the official split is there; goes into every result.
      frames: how frames were taken from video files: {"fps", "short_side"}; empty for
        images.
      facts: what else people want to know, as "12 fps; 3 shorter than a clip, looped".
      noun: what an example is: "videos" or "images".
      explain: says of an error out of next(iterator) what is at fault, and where.
      describe_bad: says of a shard and a record that training passed over what is wrong
        with it; of a training that may pass over some, whose batches then have the
        `passed_over` of passing.drop_failing.
    """

    batches: tf.data.Dataset
    dataset: str
    split: str
    classes: list[str]
    num_examples: int
    coverage: dict[str, Any]
    explain: Callable[[tf.errors.OpError], str]
    describe_bad: Callable[[int, int], str] | None = None
    num_batches: int | None = None
    num_views: int = 1
    num_crops: int = 1
    examples: Sequence[str] = ()
    rows: Sequence[int] = ()
    skipped: Sequence[dict[str, Any]] = ()
    frames: dict[str, float] = dataclasses.field(default_factory=dict)
    facts: str = ""
    noun: str = "videos"


def options(*, drops_errors: bool = False) -> tf.data.Options:
    """Those of every stream: its order is fixed, and its iterator can be saved.

    Args:
      drops_errors: whether the stream has an ignore_errors, which TensorFlow saves in
        the older way alone: with the batches that are read ahead.
    """
    chosen = tf.data.Options()
    chosen.deterministic = True
    # A saved iterator then holds the shuffle buffer, but nothing that is decoded.
    chosen.experimental_symbolic_checkpoint = not drops_errors
    # Or a prefetch of its own may be put at the end, which doubles until memory is out.
    chosen.experimental_optimization.inject_prefetch = False
    chosen.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF  # each host has its part already
    )
    return chosen


def epochs() -> tf.data.Dataset:
    """0, 1, 2, ... without an end that anyone sees.

    A tf.data service shares out a range among its workers.  Of Dataset.counter() each
    worker takes all numbers.
    """
    return tf.data.Dataset.range(1 << 40)


def shuffle(
    dataset: tf.data.Dataset, buffer: int, *, seed: tf.Tensor
) -> tf.data.Dataset:
    """Dataset.shuffle by a seed int32 [2] alone.

    Within flat_map the method makes a stateful op, which an iterator that holds it
    cannot save; and it mixes in the global seed.
    """
    specs = tf.nest.flatten(dataset.element_spec)
    seed = tf.cast(seed, tf.int64)
    variant = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(dataset),
        buffer_size=buffer,
        seed=seed[0],
        seed2=seed[1],
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
        reshuffle_each_iteration=False,
    )
    return tf.data.experimental.from_variant(variant, dataset.element_spec)
