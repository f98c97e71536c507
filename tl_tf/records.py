"""The TFRecord schema: one SequenceExample a video, and the files beside the shards.

A data set is a folder:

    dataset_info.json                      what was built, what was skipped, and how
    charades-train-00012-of-00256.tfrecord one SequenceExample a video
    charades-train-00012-of-00256.json     the shard's report: ids in record order

The keys are those that Model Garden's `video_input.Decoder` and DMVR read
(`image/encoded`, `clip/label/index`, `clip/label/text`) and those of MediaSequence for
everything else; the `tl_tf/` keys are ours.
"""

import dataclasses
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

SCHEMA_VERSION = 1

FRAMES = "image/encoded"
VIDEO_ID = "clip/media_id"
LABELS = "clip/label/index"
LABEL_NAMES = "clip/label/text"
SEGMENT_LABELS = "segment/label/index"
SEGMENT_STARTS = "segment/start/timestamp"
SEGMENT_ENDS = "segment/end/timestamp"
FPS = "image/frame_rate"
HEIGHT = "image/height"
WIDTH = "image/width"
FORMAT = "image/format"
VERSION = "tl_tf/schema_version"
CLASSES = "tl_tf/classes"

MICROSECONDS = 1_000_000
MAX_JSON_BYTES = 64 << 20  # Kinetics' description has a few MB; objects take ten times
_ID = re.compile(r"[\w.-]{1,4096}")  # safe in a file's name and on a terminal
_SHARD = re.compile(r"[\w.-]+\.tfrecord")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a terminal might obey them
REBUILD = "Delete the shard and its report, and run the data.build command again."


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a video that carries one label; times in seconds from its start."""

    label: int
    start_seconds: float
    end_seconds: float


def encode(
    video_id: str,
    frames: Sequence[bytes],
    *,
    fps: float,
    height: int,
    width: int,
    labels: Sequence[int],
    segments: Sequence[Segment],
    classes: Sequence[str],
) -> bytes:
    """Serialises one video; the same arguments always give the same bytes.

    Args:
      video_id: the data set's own id of the video.
      frames: JPEG files, in order of time; at least one.
      fps: frames per second at which `frames` were taken, above 0.
      height: of every frame, in pixels.
      width: of every frame, in pixels.
      labels: class indices of the whole video, ascending, without repetition; may be
        empty.
      segments: when each label holds; may be empty.
      classes: the class list of the data set; a label is an index into it.

    Returns:
      A serialised tf.train.SequenceExample.

    Raises:
      ValueError: for no frames, or a label outside the class list.
    """
    if not frames:
        raise ValueError(f"{video_id}: wanted at least 1 frame, got 0.")
    for label in (*labels, *(s.label for s in segments)):
        if not 0 <= label < len(classes):
            raise ValueError(
                f"{video_id}: label {label} is not in 0..{len(classes) - 1}, the class"
                " list of the data set."
            )
    context = {
        VERSION: _ints([SCHEMA_VERSION]),
        VIDEO_ID: _strings([video_id]),
        FPS: tf.train.Feature(float_list=tf.train.FloatList(value=[fps])),
        HEIGHT: _ints([height]),
        WIDTH: _ints([width]),
        FORMAT: _strings(["JPEG"]),
        LABELS: _ints(labels),
        LABEL_NAMES: _strings([classes[label] for label in labels]),
        SEGMENT_LABELS: _ints([s.label for s in segments]),
        SEGMENT_STARTS: _ints(
            [round(s.start_seconds * MICROSECONDS) for s in segments]
        ),
        SEGMENT_ENDS: _ints([round(s.end_seconds * MICROSECONDS) for s in segments]),
        CLASSES: _strings(classes),
    }
    example = tf.train.SequenceExample(context=tf.train.Features(feature=context))
    features = example.feature_lists.feature_list[FRAMES].feature
    for frame in frames:  # in place: each message that holds another copies it
        features.add().bytes_list.value.append(frame)
    return example.SerializeToString(deterministic=True)


def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses one record; works eagerly and inside Dataset.map.

    A record of another schema parses too, with `schema_version` 0 when it has none, so
    that the caller can say which shard holds it.

    Args:
      serialized: string [].

    Returns:
      frames string [frames in video], video_id string [], fps float32 [], size int64
      [2] (height and width), schema_version int64 [], classes string [classes], labels
      int64 [labels],
      segment_labels int64 [segments], segment_starts and segment_ends
      float32 [segments] in seconds.
    """
    one = {  # of each record, with what it is if the record has none
        VERSION: np.int64(0),
        VIDEO_ID: "",
        FPS: np.float32(0),
        HEIGHT: np.int64(0),
        WIDTH: np.int64(0),
    }
    many = {CLASSES: tf.string} | dict.fromkeys(
        (LABELS, SEGMENT_LABELS, SEGMENT_STARTS, SEGMENT_ENDS), tf.int64
    )
    # tf.io.parse_single_sequence_example takes a faster operation, which some damaged
    # records bring to read past its memory: the process ends by SIGSEGV.
    parsed = tf.raw_ops.ParseSingleSequenceExample(
        serialized=serialized,
        debug_name="",
        context_dense_keys=list(one),
        context_dense_defaults=list(one.values()),
        context_dense_shapes=[[]] * len(one),
        context_sparse_keys=list(many),
        context_sparse_types=list(many.values()),
        feature_list_dense_keys=[FRAMES],
        feature_list_dense_types=[tf.string],
        feature_list_dense_shapes=[[]],
        feature_list_dense_missing_assumed_empty=[],
        feature_list_sparse_keys=[],
        feature_list_sparse_types=[],
    )
    found = dict(zip(one, parsed.context_dense_values, strict=True))
    found |= dict(zip(many, parsed.context_sparse_values, strict=True))
    return {
        "frames": parsed.feature_list_dense_values[0],
        "video_id": found[VIDEO_ID],
        "fps": found[FPS],
        "size": tf.stack([found[HEIGHT], found[WIDTH]]),
        "classes": found[CLASSES],
        "schema_version": found[VERSION],
        "labels": found[LABELS],
        "segment_labels": found[SEGMENT_LABELS],
        "segment_starts": _seconds(found[SEGMENT_STARTS]),
        "segment_ends": _seconds(found[SEGMENT_ENDS]),
    }


def class_list_checksum(classes: Sequence[str]) -> str:
    """CRC-32 of the class list, as eight hexadecimal digits."""
    text = "\n".join(classes)
    return f"{zlib.crc32(text.encode()):08x}"


def shard_of(video_id: str, num_shards: int) -> int:
    """The shard that holds a video: CRC-32 of its id, so that order plays no part."""
    return zlib.crc32(video_id.encode()) % num_shards


def shard_name(dataset: str, split: str, shard: int, num_shards: int) -> str:
    """File name of a shard: `charades-train-00012-of-00256.tfrecord`."""
    return f"{dataset}-{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """`dataset_info.json`: what a build made.

    `splits[name]` holds videos_expected, videos_built, videos_skipped,
    videos_without_label, skipped (a list of {id, reason, detail}), official_videos (or
    None), left_out (names by reason), frames, bytes, labels_per_class (videos per
    class), and shards: a list of {file, records, frames, bytes, sha256}.
    """

    dataset: str
    schema_version: int
    fps: float
    short_side: int
    classes: list[str]
    splits: dict[str, dict[str, Any]]
    raw: dict[str, Any]
    folder: Path

    @classmethod
    def load(cls, data_dir: str | Path, dataset: str) -> "DatasetInfo":
        """Reads `<data_dir>/<dataset>/dataset_info.json`.

        Raises:
          ValueError: when it is missing, unreadable, of another schema version, or says
            what cannot be.
        """
        folder = Path(data_dir) / dataset
        path = folder / "dataset_info.json"
        advice = (
            f"Build it with: python -m data.build {_kind(dataset)}"
            f" --data_dir={data_dir}; docs/ADD_A_DATASET.md says what it reads."
        )
        if not path.is_file():
            if any(folder.glob("*.tfrecord")):
                raise ValueError(
                    f"{path}: no such file, yet there are shards: their build has not"
                    " ended. Run the same data.build command again: it continues."
                )
            raise ValueError(f"{path}: no such file. {advice}")
        try:
            raw = read_json(path)
            info = cls(
                dataset=raw["dataset"],
                schema_version=raw["schema_version"],
                fps=raw["fps"],
                short_side=raw["short_side"],
                classes=raw["classes"],
                splits=raw["splits"],
                raw=raw,
                folder=folder,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not a data set description ({error}). {advice}"
            ) from error
        if info.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"{path}: wanted schema version {SCHEMA_VERSION}, got"
                f" {info.schema_version}. {advice}"
            )
        fault = _fault_of(raw)
        if fault:
            raise ValueError(f"{path}: {fault}. {advice}")
        return info

    def split(self, name: str) -> dict[str, Any]:
        """One split's entry; raises a ValueError that lists the known ones."""
        if name not in self.splits:
            raise ValueError(
                f"{self.folder}: no split {name!r}; it has {sorted(self.splits)}."
            )
        return self.splits[name]

    def shard_paths(self, split: str) -> list[Path]:
        """The split's shards, in order; see `shard_path`."""
        return [self.shard_path(shard) for shard in self.split(split)["shards"]]

    def shard_path(self, shard: dict[str, Any]) -> Path:
        """Where a shard is; its bytes are not read.

        Raises:
          ValueError: it is missing, or has not the size that is listed.
        """
        path = self.folder / shard["file"]
        if not path.is_file():
            raise ValueError(
                f"{path}: the shard is missing; dataset_info.json lists it."
                " Run the same data.build command again: it rebuilds what is gone."
            )
        if path.stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{path}: wanted {shard['bytes']:,} bytes as dataset_info.json"
                f" says, got {path.stat().st_size:,}: it was cut, swapped or built"
                f" anew. {REBUILD}"
            )
        return path

    def reports(self, split: str) -> list[dict[str, Any]]:
        """The reports of the split's shards, in order: see `read_shard_report`.

        Raises:
          ValueError: for a report that is missing, or is not that of its shard; for a
            video that occurs twice.
        """
        reports = [self.report(shard) for shard in self.split(split)["shards"]]
        built = Counter(video["id"] for r in reports for video in r["built"])
        for video_id, count in built.most_common(1):
            if count > 1:
                raise ValueError(
                    f"{self.folder}: split {split!r}: wanted each video once, got"
                    f" {video_id} {count} times. Build the split again."
                )
        return reports

    def report(self, shard: dict[str, Any]) -> dict[str, Any]:
        """A shard's report; a ValueError if it is missing, or that of another."""
        path = self.folder / shard["file"]
        report = read_shard_report(path)
        fault = _fault_of_report(report, shard)
        if fault:
            raise ValueError(f"{path.with_suffix('.json')}: {fault}. {REBUILD}")
        return report

    def video_ids(self, split: str) -> list[list[str]]:
        """Video ids by shard and record."""
        return [[v["id"] for v in r["built"]] for r in self.reports(split)]

    def coverage(self, split: str) -> dict[str, Any]:
        """How much of the split was built: for every result file.

        `share` is of the official number of videos where that is known, otherwise of
        those that the annotation files list; a list that was cut down does not count as
        complete.  `official_videos` is None where it is not known.
        """
        entry = self.split(split)
        expected, built = entry["videos_expected"], entry["videos_built"]
        official = entry.get("official_videos")
        whole = max(expected, official or 0)
        return {
            "official_videos": official,
            "videos_expected": expected,
            "videos_built": built,
            "videos_skipped": expected - built,
            "share": built / whole if whole else 0.0,
        }


def _kind(dataset: str) -> str:
    """What data.build calls it; people name sets of their own videos themselves."""
    if dataset in ("charades", "avid", "synthetic"):
        return dataset
    kinetics, version = dataset[:8], dataset[8:]
    if kinetics == "kinetics" and version.isdigit():
        return f"kinetics --version={version}"
    return f"folder --name={dataset} (or csv)"


def read_shard_report(shard_path: Path) -> dict[str, Any]:
    """The report beside a shard.

    `built` has an entry for each record, in order: {id, row, frames, labels, ...};
    `skipped` one for each video that could not be built: {id, row, labels, reason,
    detail}.  `row` is the video's place in the annotations of its split.
    """
    path = shard_path.with_suffix(".json")
    try:
        return read_json(path)
    except OSError as error:
        reason = error.strerror
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{path}: not the report of a shard ({reason}). {REBUILD}")


def read_json(path: Path) -> Any:
    """The content of a JSON file that may come from a stranger.

    Raises:
      ValueError: it is no JSON, not UTF-8, too large or too deep.
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"wanted at most {MAX_JSON_BYTES >> 20} MiB, got more")
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise ValueError("its lists are too deep") from None


def _fault_of(raw: Any) -> str:
    """What of a description cannot be; "" if nothing."""
    classes, splits = raw["classes"], raw["splits"]
    if not isinstance(raw["fps"], int | float) or not 0 < raw["fps"] < math.inf:
        return f"wanted fps above 0, got {raw['fps']!r}"
    is_list = isinstance(classes, list) and all(isinstance(c, str) for c in classes)
    if not is_list or not classes or len(set(classes)) < len(classes):
        return "wanted a list of classes, each once"
    if any(_CONTROL.search(name) for name in classes):
        return "wanted classes without control characters"
    if not isinstance(splits, dict):
        return f"wanted splits by name, got {splits!r:.80}"
    for name, split in splits.items():
        try:
            numbers = [split[n] for n in ("videos_expected", "videos_built")]
            shards = split["shards"]
            files = [shard["file"] for shard in shards]
            for shard in shards:
                numbers += [shard["records"], shard["bytes"]]
        except (KeyError, TypeError, AttributeError):
            return f"split {name!r} lacks its numbers, or its list of shards"
        if not all(type(n) is int and n >= 0 for n in numbers):
            return f"split {name!r} has numbers that count nothing"
        for file in files:
            # A name that leads elsewhere would read, and rebuild, other files.
            if not isinstance(file, str) or not _SHARD.fullmatch(file):
                return f"split {name!r} has a shard that is no file name: {file!r:.80}"
        if len(set(files)) < len(files):
            return f"split {name!r} lists a shard twice"
        built = sum(shard["records"] for shard in shards)
        if built != split["videos_built"]:
            return (
                f"split {name!r} wanted {split['videos_built']} videos in its shards,"
                f" got {built}"
            )
    return ""


def _fault_of_report(report: Any, shard: dict[str, Any]) -> str:
    """What of a shard's report cannot be; "" if nothing."""
    try:
        built, skipped = report["built"], report["skipped"]
        is_sound = all(
            _ID.fullmatch(video["id"]) and type(video["row"]) is int
            for video in (*built, *skipped)
        ) and all(type(video["frames"]) is int for video in built)
    except (KeyError, TypeError):
        is_sound = False
    if not is_sound:
        return "wanted id, row and frames of every video"
    if report.get("shard", shard["file"]) != shard["file"]:
        return f"wanted the report of {shard['file']}, got that of {report['shard']}"
    if len(built) != shard["records"]:
        return (
            f"wanted {shard['records']} videos as dataset_info.json says, got"
            f" {len(built)}"
        )
    return ""


def _ints(values: Sequence[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _bytes(values: Sequence[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _strings(values: Sequence[str]) -> tf.train.Feature:
    return _bytes([v.encode() for v in values])


def _seconds(microseconds: tf.Tensor) -> tf.Tensor:
    return tf.cast(microseconds, tf.float32) / MICROSECONDS
