"""The unit of work: one shard of a dataset, built whole or not at all.

A process pool, a Beam pipeline and a build that was killed and started again all call
`build_shard`, so that they leave the same bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import tensorflow as tf

from data import frames, isolated, manifest
from tl_tf import files, records


@dataclasses.dataclass(frozen=True)
class Shard:
    """Everything that decides the bytes of a shard, and where they go.

    Attributes:
      path: of the shard; its report is beside it.
      clips: in the order of their records.
      classes: the dataset's class list.
      options: what the command line chose; another build must agree before it reuses
        this shard.
      timeout_seconds: wall-clock limit of decoding one video.
    """

    path: Path
    clips: tuple[manifest.Clip, ...]
    classes: tuple[str, ...]
    options: Mapping[str, Any]
    timeout_seconds: float

    @property
    def report_path(self) -> Path:
        """Where the report stands once the shard is complete."""
        return self.path.with_suffix(".json")

    def annotations_checksum(self) -> str:
        """CRC-32 of what the annotations say of these clips, and of the class list."""
        said = [
            [c.row, c.video_id, c.start_seconds, c.end_seconds, c.label_ids, c.segments]
            for c in self.clips
        ]
        return _checksum([said, self.classes])

    def videos_checksum(self) -> str:
        """CRC-32 of which files are there, and of their sizes."""
        sizes = [
            c.video_path.stat().st_size if os.path.isfile(c.video_path) else None
            for c in self.clips
        ]
        return _checksum(sizes)


def finished_report(shard: Shard) -> dict[str, Any] | None:
    """The report of a shard that needs no work; None when it has to be built.

    Videos that came or changed since make a shard unfinished, other options do not:
    see `plan.check_options`.
    """
    try:
        report = records.read_shard_report(shard.path)
        is_finished = (
            report["annotations_checksum"] == shard.annotations_checksum()
            and report["videos_checksum"] == shard.videos_checksum()
            and report["options"] == shard.options
            and report["bytes"] == shard.path.stat().st_size
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if is_finished else None


def build_shard(
    shard: Shard,
    workers: isolated.Workers,
    *,
    num_ahead: int = 2,
    on_video: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Builds a shard and its report, unless both are there; returns the report.

    The shard appears under its own name only when complete, and its report after it.

    Args:
      shard: what to build.
      workers: who decodes; other shards may share them.
      num_ahead: videos being decoded, or decoded and not yet written, at any time.
      on_video: called after each.
    """
    report = finished_report(shard)
    if report is not None:
        return report
    shard.report_path.unlink(missing_ok=True)
    built, skipped, notes = [], [], Counter()
    with files.whole(shard.path) as temporary:
        with _record_writer(temporary) as writer:
            for clip, call in _decoding(shard, workers, num_ahead):
                try:
                    video = _result(call)
                except frames.VideoError as error:
                    skipped.append(_skipped_entry(clip, error))
                else:
                    writer.write(_encode(clip, video, shard))
                    built.append(_entry(clip, video))
                    notes["end_past_video"] += _ends_past(clip, built[-1]["seconds"])
                notes.update(clip.notes)
                on_video()
        num_bytes, digest = temporary.stat().st_size, sha256(temporary)
    report = {
        "shard": shard.path.name,
        "options": dict(shard.options),
        "annotations_checksum": shard.annotations_checksum(),
        "videos_checksum": shard.videos_checksum(),
        "records": len(built),
        "bytes": num_bytes,
        "sha256": digest,
        "built": built,
        "skipped": skipped,
        "notes": {name: count for name, count in notes.items() if count},
    }
    write_json(shard.report_path, report)
    return report


def write_json(path: Path, content: Any) -> None:
    """Writes a file that is there whole or not at all."""
    files.write(path, json.dumps(content, indent=1) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _record_writer(path: Path) -> Iterator[tf.io.TFRecordWriter]:
    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            yield writer
    except tf.errors.OpError as error:  # a full disk, say
        raise OSError(f"{path}: {error.message}") from error


def _decoding(
    shard: Shard, workers: isolated.Workers, num_ahead: int
) -> Iterator[tuple[manifest.Clip, futures.Future]]:
    """Yields the clips in their order, each with the call that decodes it."""
    running = deque()
    for clip in shard.clips:
        call = workers.submit(
            frames.extract,
            clip.video_path,
            fps=shard.options["fps"],
            short_side=shard.options["short_side"],
            max_seconds=shard.options["max_seconds"],
            start_seconds=clip.start_seconds,
            end_seconds=clip.end_seconds,
        )
        running.append((clip, call))
        if len(running) == num_ahead:
            yield running.popleft()
    yield from running


def _result(call: futures.Future) -> frames.Video:
    try:
        return call.result()
    except isolated.TimedOut as error:
        raise frames.VideoError("timeout", str(error)) from error
    except isolated.Crashed as error:
        raise frames.VideoError("crashed", str(error)) from error
    except (frames.VideoError, ImportError, futures.CancelledError):
        raise
    except Exception as error:
        # One file must not end a build of thousands; too many such files will.
        raise frames.VideoError(
            "unreadable", f"{type(error).__name__}: {error}"
        ) from error


def _encode(clip: manifest.Clip, video: frames.Video, shard: Shard) -> bytes:
    return records.encode(
        clip.video_id,
        video.frames,
        fps=shard.options["fps"],
        height=video.height,
        width=video.width,
        labels=clip.label_ids,
        segments=[records.Segment(*segment) for segment in clip.segments],
        classes=shard.classes,
    )


def _entry(clip: manifest.Clip, video: frames.Video) -> dict[str, Any]:
    return {
        "id": clip.video_id,
        "row": clip.row,
        "frames": len(video.frames),
        "height": video.height,
        "width": video.width,
        "bytes": sum(len(frame) for frame in video.frames),
        "seconds": round(video.seconds, 3),
        "labels": list(clip.label_ids),
        "damaged": video.damaged,
    }


def _skipped_entry(clip: manifest.Clip, error: frames.VideoError) -> dict[str, Any]:
    return {
        "id": clip.video_id,
        "row": clip.row,
        "labels": list(clip.label_ids),
        "reason": error.reason,
        "detail": error.detail,
    }


def _ends_past(clip: manifest.Clip, seconds: float) -> bool:
    """Whether the annotated end is later than the video's, by a millisecond or more."""
    if clip.end_seconds is None:
        return False
    return seconds < clip.end_seconds - clip.start_seconds - 1e-3


def _checksum(content: Any) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"
