"""What is wrong with a record: named where it is read, or looked for afterwards.

An error of a decoder or of a checksum does not say in which shard it arose.  What is
cheap to check is therefore checked in the stream, with a message that names shard and
record; for the rest `explain` reads the shards once more, after the fact.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from tl_tf import integrity, records

JPEG_ENDS = (b"\xff\xd8", b"\xff\xd9")


@dataclasses.dataclass(frozen=True)
class Where:
    """A record in the stream: path of its shard, string []; its number, int64 []."""

    path: tf.Tensor
    record: tf.Tensor


def check_video(
    video: dict[str, tf.Tensor],
    where: Where,
    info: records.DatasetInfo,
    *,
    video_id: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Returns what records.parse gave, once it is a video of the data set.

    Args:
      video: of records.parse.
      where: it stands.
      info: of the data set.
      video_id: string [], that the shard's report gives the record.
    """
    version, fps, size = video["schema_version"], video["fps"], video["size"]
    labels = tf.concat([video["labels"], video["segment_labels"]], axis=0)
    num_classes = len(info.classes)
    found_classes = tf.strings.reduce_join(video["classes"], separator="\n")
    checks = [
        (
            tf.equal(version, records.SCHEMA_VERSION),
            [integrity.WRONG_VERSION, tf.strings.as_string(version)],
        ),
        (
            tf.equal(found_classes, "\n".join(info.classes)),
            ["wanted the class list of dataset_info.json, got another"],
        ),
        (
            tf.reduce_all((labels >= 0) & (labels < num_classes)),
            [f"wanted labels in 0..{num_classes - 1}, got others"],
        ),
        (
            tf.equal(fps, np.float32(info.fps)),
            [
                f"wanted {info.fps:g} frames per second, got ",
                tf.strings.as_string(fps, shortest=True),
            ],
        ),
        (
            tf.equal(video["video_id"], video_id),
            ["wanted video ", video_id, " as the shard's report says, got another"],
        ),
        (tf.size(video["frames"]) > 0, [integrity.NO_FRAMES]),
        (
            tf.reduce_all((size > 0) & (size <= integrity.MAX_SIDE_PX)),
            [f"wanted frames of 1..{integrity.MAX_SIDE_PX} pixels a side, got others"],
        ),
    ]
    return {**video, "frames": _require(checks, video["frames"], where)}


def check_jpegs(frames: tf.Tensor, size: tf.Tensor, where: Where) -> tf.Tensor:
    """Returns JPEG files, once each has both its ends and the size in its header.

    A header is read in microseconds, and before memory is asked for its pixels.

    Args:
      frames: string [T] or [clips, T], T static.
      size: int64 [2], height and width that the record states.
      where: the record stands.
    """
    two = tf.minimum(tf.strings.length(frames), 2)
    starts = tf.strings.substr(frames, tf.zeros_like(two), two)
    ends = tf.strings.substr(frames, -two, two)
    whole = tf.equal(starts, JPEG_ENDS[0]) & tf.equal(ends, JPEG_ENDS[1])
    broken = [integrity.BROKEN_FRAME, " (its ends)"]
    frames = _require([(tf.reduce_all(whole), broken)], frames, where)

    def sizes_of(clip: tf.Tensor) -> tf.Tensor:
        """-> int32 [T, 2]; unrolled, at a fifth of the time of a loop."""
        each = tf.unstack(clip, frames.shape[-1])
        return tf.stack([tf.image.extract_jpeg_shape(frame)[:2] for frame in each])

    if frames.shape.rank == 1:
        sizes = sizes_of(frames)  # [T, 2]
    else:
        spec = tf.TensorSpec([frames.shape[-1], 2], tf.int32)
        sizes = tf.map_fn(sizes_of, frames, fn_output_signature=spec)  # [clips, T, 2]
    same = tf.reduce_all(tf.equal(sizes, tf.cast(size, tf.int32)))
    return _require([(same, [integrity.OTHER_SIZE])], frames, where)


def check_first_record(
    info: records.DatasetInfo, split: str, ids: list[list[str]]
) -> None:
    """Raises a ValueError unless there is a first record, and it is sound.

    Args:
      info: of the data set.
      split: its name.
      ids: by shard and record, as `info.video_ids`.
    """
    shard = next((shard for shard, found in enumerate(ids) if found), None)
    if shard is None:
        raise ValueError(
            f"{info.folder}: split {split!r} has no video. Build it again."
        )
    path = info.shard_paths(split)[shard]
    fault = integrity.fault_at(path, 0, info, video_id=ids[shard][0], decode=_decode)
    if fault:
        raise ValueError(integrity.sentence(path, 0, fault))


def explain(
    error: Exception, info: records.DatasetInfo, split: str, shards: list[int]
) -> str:
    """Says which record of `shards` stopped the stream, and what to do about it.

    When the error, one of split.ERRORS, does not say so itself, the shards are read
    from the first on until the fault shows; an error other than one of checksums means
    decoding every frame.
    """
    message = getattr(error, "message", "")
    named = re.search(r"assertion failed: \[(.*?again\.)", message)
    if named:
        return named[1].replace("\\'", "'")
    logging.warning("Reading %d shards to find the damaged record.", len(shards))
    try:
        integrity.check_shards(info, split, shards)
        ids = info.video_ids(split)
    except ValueError as fault:
        return str(fault)
    paths = info.shard_paths(split)
    decode = None if isinstance(error, tf.errors.DataLossError) else _decode
    for shard in shards:
        found, _ = integrity.places(paths[shard])
        for record, (offset, _) in enumerate(found):
            fault = integrity.fault_at(
                paths[shard],
                offset,
                info,
                video_id=ids[shard][record],
                decode=decode,
            )
            if fault:
                return integrity.sentence(paths[shard], record, fault)
    return f"{info.folder}: no record of split {split!r} is damaged. {message}"


def describe(
    info: records.DatasetInfo, path: Path, record: int, *, video_id: str
) -> str:
    """What is wrong with a record that training passed over, as a sentence."""
    found, fault = integrity.places(path)
    for number, (offset, _) in enumerate(found[: record + 1]):
        if number == record:
            fault = integrity.fault_at(
                path, offset, info, video_id=video_id, decode=_decode
            )
        elif integrity.read(path, offset) is None:
            fault = f"not read, as record {number} before it is damaged"
            break
    return integrity.sentence(path, record, fault or "sound now, and not before")


def _decode(jpeg: bytes) -> tuple[int, int]:
    """As training does."""
    return tuple(tf.io.decode_jpeg(jpeg, channels=3).shape[:2])


def _require(
    checks: Sequence[tuple[tf.Tensor, Sequence[str | tf.Tensor]]],
    value: tf.Tensor,
    where: Where,
) -> tf.Tensor:
    """Returns `value` if all conditions hold; else the stream stops with a sentence.

    Args:
      checks: conditions, bool [], and what is said where one does not hold.
      value: anything.
      where: the record stands.
    """
    holds = tf.stack([condition for condition, _ in checks])

    def say() -> tf.Tensor:
        found = tf.stack([tf.strings.join(what) for _, what in checks])
        record = tf.strings.as_string(where.record)
        return tf.strings.join(
            [
                where.path,
                ": record ",
                record,
                ": ",
                found[tf.argmin(tf.cast(holds, tf.int32))],
            ]
            + [". ", records.REBUILD]
        )

    is_sound = tf.reduce_all(holds)
    message = tf.cond(is_sound, lambda: "", say)  # strings take longer than the checks
    with tf.control_dependencies([tf.debugging.Assert(is_sound, [message])]):
        return tf.identity(value)
