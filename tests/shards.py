"""Data sets of shards for tests, written with records.encode alone."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tl_tf import records

CLASSES = ("left", "right", "up")
FPS = 4.0
HEIGHT, WIDTH = 30, 46


@dataclasses.dataclass(frozen=True)
class Video:
    frames: Sequence[bytes]
    labels: Sequence[int] = ()
    segments: Sequence[records.Segment] = ()


def grey_jpegs(levels: Sequence[int]) -> list[bytes]:
    """One frame of one grey level each, so that a decoded frame tells its index."""
    return [jpeg(np.full((HEIGHT, WIDTH, 3), level, np.uint8)) for level in levels]


def jpeg(pixels: np.ndarray) -> bytes:
    return tf.io.encode_jpeg(pixels, quality=95, chroma_downsampling=False).numpy()


def encode(video_id: str, video: Video, classes: Sequence[str] = CLASSES) -> bytes:
    return records.encode(
        video_id,
        video.frames,
        fps=FPS,
        height=HEIGHT,
        width=WIDTH,
        labels=video.labels,
        segments=video.segments,
        classes=classes,
    )


def write_dataset(
    data_dir: Path, shards: Sequence[dict[str, Video]], *, split: str = "train"
) -> Path:
    """Writes data set "toy"; each shard is {video id: video}.  Returns its folder."""
    folder = data_dir / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    entries, rows = [], itertools.count()
    for number, videos in enumerate(shards):
        name = records.shard_name("toy", split, number, len(shards))
        write_records(folder / name, [encode(*item) for item in videos.items()])
        built = [
            {"id": i, "row": next(rows), "frames": len(v.frames)}
            for i, v in videos.items()
        ]
        report = {"built": built, "skipped": []}
        (folder / name).with_suffix(".json").write_text(json.dumps(report))
        frames = [frame for video in videos.values() for frame in video.frames]
        entries.append(
            {
                "file": name,
                "records": len(videos),
                "frames": len(frames),
                "bytes": (folder / name).stat().st_size,
            }
        )
    path = folder / "dataset_info.json"
    if path.is_file():
        info = json.loads(path.read_text())
    else:
        info = {
            "dataset": "toy",
            "schema_version": records.SCHEMA_VERSION,
            "fps": FPS,
            "short_side": min(HEIGHT, WIDTH),
            "classes": list(CLASSES),
            "splits": {},
        }
    num_videos = sum(entry["records"] for entry in entries)
    info["splits"][split] = {
        "videos_expected": num_videos,
        "videos_built": num_videos,
        "frames": sum(entry["frames"] for entry in entries),
        "bytes": sum(entry["bytes"] for entry in entries),
        "shards": entries,
    }
    path.write_text(json.dumps(info))
    return folder


def rewrite(path: Path, serialized: Sequence[bytes] | None = None) -> None:
    """Writes a shard's records anew; dataset_info.json gets the file's size, as if a
    build had made it."""
    if serialized is not None:
        write_records(path, serialized)
    info_path = path.with_name("dataset_info.json")
    info = json.loads(info_path.read_text())
    for split in info["splits"].values():
        for shard in split["shards"]:
            if shard["file"] == path.name:
                shard["bytes"] = path.stat().st_size
    info_path.write_text(json.dumps(info))


def write_records(path: Path, serialized: Sequence[bytes]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in serialized:
            writer.write(record)
