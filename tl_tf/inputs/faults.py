"""What is wrong with a record: named where it is read, or looked for afterwards.

An error of a decoder or of a checksum does not say in which shard it arose.  What is
cheap to check is therefore checked in the stream, with a message that names shard and
record; for the rest `explain` reads the shards once more, after the fact.
"""

import dataclasses
import re
from pathlib import Path

import tensorflow as tf
from absl import logging

from tl_tf import records

JPEG_END = b"\xff\xd9"
REBUILD = "Delete the shard and its report, and run the data.build command again."
WRONG_VERSION = f"wanted schema version {records.SCHEMA_VERSION}, got "
NO_FRAMES = "wanted at least 1 frame, got 0"
TRUNCATED = "wanted whole JPEG frames, got a damaged one"


@dataclasses.dataclass(frozen=True)
class Where:
    """A record in the stream: path of its shard, string []; its number, int64 []."""

    path: tf.Tensor
    record: tf.Tensor


def check_video(video: dict[str, tf.Tensor], where: Where) -> dict[str, tf.Tensor]:
    """Returns what records.parse gave, once its schema version and frames are right."""
    version = video["schema_version"]
    frames = _require(
        tf.equal(version, records.SCHEMA_VERSION),
        video["frames"],
        where,
        WRONG_VERSION,
        tf.strings.as_string(version),
    )
    frames = _require(tf.size(frames) > 0, frames, where, NO_FRAMES)
    return {**video, "frames": frames}


def check_jpegs(frames: tf.Tensor, where: Where) -> tf.Tensor:
    """Returns the JPEG files, once each has its end: a truncated one has not."""
    tail = tf.minimum(tf.strings.length(frames), len(JPEG_END))
    whole = tf.equal(tf.strings.substr(frames, -tail, tail), JPEG_END)
    return _require(tf.reduce_all(whole), frames, where, TRUNCATED)


def check_first_record(info: records.DatasetInfo, split: str) -> None:
    """Raises a ValueError unless the first record is sound and of the class list."""
    path = next(
        info.folder / shard["file"]
        for shard in info.split(split)["shards"]
        if shard["records"]
    )
    first = tf.data.TFRecordDataset(str(path)).take(1)
    fault = _find_fault(path, first, wanted_records=1, decode=True)
    if fault:
        raise ValueError(fault)
    (serialized,) = first.as_numpy_iterator()
    got = records.class_list_checksum(records.read_classes(serialized))
    wanted = records.class_list_checksum(info.classes)
    if got != wanted:
        what = f"wanted the class list of dataset_info.json ({wanted}), got another"
        raise ValueError(_sentence(path, 0, f"{what} ({got})"))


def explain(
    error: tf.errors.OpError, info: records.DatasetInfo, split: str, shards: list[int]
) -> str:
    """Says which record of `shards` stopped the stream, and what to do about it.

    When the error does not say so itself, the shards are read from the first on until
    the fault shows; an error other than one of checksums means decoding every frame.
    """
    named = re.search(r"assertion failed: \[(.*?again\.)", error.message)
    if named:
        return named[1]
    logging.warning("Reading %d shards to find the damaged record.", len(shards))
    paths = info.shard_paths(split)
    for shard in shards:
        fault = _find_fault(
            paths[shard],
            tf.data.TFRecordDataset(str(paths[shard])),
            wanted_records=info.split(split)["shards"][shard]["records"],
            decode=not isinstance(error, tf.errors.DataLossError),
        )
        if fault:
            return fault
    return f"{info.folder}: no record of split {split!r} is damaged. {error.message}"


def _find_fault(
    path: Path, dataset: tf.data.Dataset, *, wanted_records: int, decode: bool
) -> str | None:
    """The first fault in the records of a shard, as a sentence."""
    record = -1
    try:
        for record, serialized in enumerate(dataset):
            what = _fault_of(serialized, decode=decode)
            if what:
                return _sentence(path, record, what)
    except tf.errors.DataLossError:
        what = "wanted bytes that match their checksum, got damaged ones"
        return _sentence(path, record + 1, what)
    if record + 1 != wanted_records:
        what = f"wanted {wanted_records} records in the shard, got {record + 1}"
        return _sentence(path, record + 1, what)
    return None


def _fault_of(serialized: tf.Tensor, *, decode: bool) -> str | None:
    try:
        video = records.parse(serialized)
    except tf.errors.InvalidArgumentError:
        return "wanted a tf.train.SequenceExample, got other bytes"
    if video["schema_version"] != records.SCHEMA_VERSION:
        return WRONG_VERSION + str(video["schema_version"].numpy())
    if not tf.size(video["frames"]):
        return NO_FRAMES
    if not decode:
        return None
    shapes = set()
    for number, frame in enumerate(video["frames"]):
        try:
            shapes.add(tuple(tf.io.decode_jpeg(frame, channels=3).shape))
        except tf.errors.InvalidArgumentError:
            return f"{TRUNCATED} (frame {number})"
        if len(shapes) > 1:
            return f"wanted frames of one size, got {sorted(shapes)} (frame {number})"
    return None


def _require(
    condition: tf.Tensor, value: tf.Tensor, where: Where, *what: str | tf.Tensor
) -> tf.Tensor:
    """Returns `value` if the condition holds; else the stream stops with a sentence."""
    record = tf.strings.as_string(where.record)
    message = tf.strings.join(
        [where.path, ": record ", record, ": ", *what, ". ", REBUILD]
    )
    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return tf.identity(value)


def _sentence(path: Path, record: int, what: str) -> str:
    return f"{path}: record {record}: {what}. {REBUILD}"
