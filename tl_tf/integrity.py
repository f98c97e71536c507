"""Whether a shard's bytes are records, and whether a record is a video of its data set.

Shards may come from strangers: what a header claims is checked before it is believed,
which TensorFlow's own reader leaves out: it ends the process over a length of 2^40.
"""

import io
import os
import struct
import warnings
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import numpy as np
import PIL.Image
import tensorflow as tf
from google.protobuf import message
from tensorflow.python.lib.io import tf_record  # no public way to read at an offset

from tl_tf import records

MAX_RECORD_BYTES = 1 << 31  # a protocol buffer is smaller
MAX_SIDE_PX = 8192  # of a frame: decoded, it has 200 MB at most; that of data.build
THREADS = 16

CHECKSUM = "wanted bytes that match their checksum, got damaged ones"
NO_EXAMPLE = "wanted a tf.train.SequenceExample, got other bytes"
WRONG_VERSION = f"wanted schema version {records.SCHEMA_VERSION}, got "
NO_FRAMES = "wanted at least 1 frame, got 0"
BROKEN_FRAME = "wanted whole JPEG frames, got a damaged one"
OTHER_SIZE = "wanted frames of one size, as the record states it, got another"

_HEADER = struct.Struct("<QI")
_FRAMING = _HEADER.size + 4  # bytes of a record that are not its content


def places(path: Path) -> tuple[list[tuple[int, int]], str]:
    """Where the records of a shard are, by their headers alone.

    Returns:
      Offset and length in bytes of each record, and why no more can be read, "" at the
      end of the file.

    Raises:
      ValueError: a record claims to be larger than any can be: nobody's accident.
    """
    found, offset, size = [], 0, path.stat().st_size
    with path.open("rb", buffering=0) as file:
        while offset < size:
            header = os.pread(file.fileno(), _HEADER.size, offset)
            if len(header) < _HEADER.size:
                return found, "wanted a whole record, got the end of the file"
            length, checksum = _HEADER.unpack(header)
            if checksum != _masked_crc32c(header[:8]):
                return found, CHECKSUM
            if length > MAX_RECORD_BYTES:
                what = f"wanted at most {MAX_RECORD_BYTES:,} bytes, got {length:,}"
                raise ValueError(sentence(path, len(found), what))
            if length > size - offset - _FRAMING:
                return found, (
                    f"wanted a whole record of {length:,} bytes, got the end of the"
                    f" file after {size - offset:,}"
                )
            found.append((offset, length))
            offset += length + _FRAMING
    return found, ""


def check_shards(
    info: records.DatasetInfo, split: str, shards: list[int], *, may_be_damaged=False
) -> None:
    """Raises a ValueError for the first shard that does not hold its records.

    Twelve bytes of each record are read; what is in it is not looked at.  Where damage
    may be, only what no reader survives is refused.
    """
    paths = info.shard_paths(split)
    entries = info.split(split)["shards"]
    with futures.ThreadPoolExecutor(THREADS) as pool:
        walks = pool.map(places, (paths[shard] for shard in shards))
        for shard, (found, fault) in zip(shards, walks, strict=True):
            wanted = entries[shard]["records"]
            if not fault and len(found) != wanted:
                fault = f"wanted {wanted} records in the shard, got {len(found)}"
            if fault and not may_be_damaged:
                raise ValueError(sentence(paths[shard], len(found), fault))


def read(path: Path, offset: int) -> bytes | None:
    """The record at an offset of `places`, or None if its checksum is another."""
    try:
        return tf_record.tf_record_random_reader(str(path)).read(offset)[0]
    except tf.errors.DataLossError:
        return None


def fault_at(path: Path, offset: int, info: records.DatasetInfo, **options) -> str:
    """What is wrong with the record at an offset: see `fault_of`, and its options."""
    serialized = read(path, offset)
    return CHECKSUM if serialized is None else fault_of(serialized, info, **options)


def fault_of(
    serialized: bytes,
    info: records.DatasetInfo,
    *,
    video_id: str | None = None,
    num_frames: int | None = None,
    decode: Callable[[bytes], tuple[int, int]] | None = None,
) -> str:
    """What is wrong with a record, as "wanted this, got that"; "" if nothing.

    Args:
      serialized: the record.
      info: of its data set.
      video_id: that the shard's report gives the record; None for any.
      num_frames: that the report gives it; None for any.
      decode: height and width of a JPEG file, whose pixels it decodes; ValueError or
        OSError if it cannot.  None leaves the pixels alone.
    """
    try:
        example = tf.train.SequenceExample.FromString(serialized)
    except message.DecodeError:
        return NO_EXAMPLE
    context = example.context.feature
    classes = [c.decode("utf-8", "replace") for c in _strings(context, records.CLASSES)]
    labels = [*_ints(context, records.LABELS), *_ints(context, records.SEGMENT_LABELS)]
    frames = [
        b"".join(feature.bytes_list.value[:1])
        for feature in example.feature_lists.feature_list[records.FRAMES].feature
    ]
    found_id = b"".join(_strings(context, records.VIDEO_ID)).decode("utf-8", "replace")
    version = _ints(context, records.VERSION) or [0]
    if version != [records.SCHEMA_VERSION]:
        return WRONG_VERSION + ", ".join(map(str, version))
    if classes != info.classes:
        wanted = records.class_list_checksum(info.classes)
        got = records.class_list_checksum(classes)
        return f"wanted the class list of dataset_info.json ({wanted}), got {got}"
    if not all(0 <= label < len(classes) for label in labels):
        return f"wanted labels in 0..{len(classes) - 1}, got {sorted({*labels})}"
    fps = [*context[records.FPS].float_list.value] or [0.0]
    if np.float32(fps[0]) != np.float32(info.fps):
        return f"wanted {info.fps:g} frames per second, got {fps[0]:g}"
    if video_id not in (None, found_id):
        return (
            f"wanted video {video_id} as the shard's report says, got {found_id!r:.80}"
        )
    if not frames:
        return NO_FRAMES
    if num_frames not in (None, len(frames)):
        return f"wanted {num_frames} frames as its report says, got {len(frames)}"
    size = (_ints(context, records.HEIGHT)[:1], _ints(context, records.WIDTH)[:1])
    return _fault_of_frames(frames, sum(map(tuple, size), ()), decode)


def _fault_of_frames(
    frames: list[bytes],
    size: tuple[int, ...],
    decode: Callable[[bytes], tuple[int, int]] | None,
) -> str:
    for number, frame in enumerate(frames):
        at = f" (frame {number} of {len(frames)})"
        if not frame.startswith(b"\xff\xd8") or not frame.endswith(b"\xff\xd9"):
            return BROKEN_FRAME + at
        try:
            found = header_size(frame)
            if found != size or max(found) > MAX_SIDE_PX:  # before it is decoded
                stated = "x".join(map(str, size)) or "none"
                return f"{OTHER_SIZE}: {stated} and {found[0]}x{found[1]}{at}"
            if decode is not None:
                decode(frame)
        except (OSError, ValueError, SyntaxError, tf.errors.OpError):
            return BROKEN_FRAME + at
        except PIL.Image.DecompressionBombError:
            return f"{OTHER_SIZE}: more pixels than any{at}"
    return ""


def header_size(jpeg: bytes) -> tuple[int, int]:
    """Height and width as a JPEG file's header says, whatever they are."""
    return _opened(jpeg).size[::-1]


def decode_by_pillow(jpeg: bytes) -> tuple[int, int]:
    """Decodes a JPEG file by Pillow; its height and width."""
    image = _opened(jpeg)
    image.load()
    return image.size[::-1]


def sentence(path: Path, record: int, what: str) -> str:
    """A fault for people: where, what, and what to do."""
    return f"{path}: record {record}: {what}. {records.REBUILD}"


def _opened(jpeg: bytes) -> PIL.Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its size, which the caller checks
        return PIL.Image.open(io.BytesIO(jpeg), formats=["JPEG"])


def _ints(context, key: str) -> list[int]:
    return list(context[key].int64_list.value)


def _strings(context, key: str) -> list[bytes]:
    return list(context[key].bytes_list.value)


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc32c_table()


def _masked_crc32c(content: bytes) -> int:
    """CRC-32C, turned and shifted as in TFRecord files; for a few bytes."""
    value = 0xFFFFFFFF
    for byte in content:
        value = _TABLE[(value ^ byte) & 255] ^ value >> 8
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
