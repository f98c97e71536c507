"""dataset_info.json: what the shards of a dataset hold, and its table for people."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import manifest, shards
from tl_tf import records

SHORT_VIDEO_FRAMES = 64  # the clip length of most recipes
INFO_NAME = "dataset_info.json"


def split_entry(
    split: str, work: Sequence[shards.Shard], read: manifest.Annotations
) -> dict[str, Any]:
    """A split's entry of dataset_info.json, added up from the reports of its shards."""
    reports = [shards.finished_report(shard) for shard in work]
    if None in reports:
        path = work[reports.index(None)].path
        raise ValueError(
            f"{path}: not built, or its videos changed meanwhile. Run the same command"
            " again."
        )
    built = [video for report in reports for video in report["built"]]
    skipped = sorted(
        (video for report in reports for video in report["skipped"]),
        key=lambda video: video["id"],
    )
    notes = Counter()
    for report in reports:
        notes.update(report["notes"])
    notes["damaged_videos"] = sum(video["damaged"] > 0 for video in built)
    labels = Counter(label for video in built for label in video["labels"])
    lengths = [video["frames"] for video in built] or [0]
    return {
        "official_videos": read.official_videos.get(split),
        "videos_expected": len(built) + len(skipped),
        "videos_built": len(built),
        "videos_skipped": len(skipped),
        "videos_without_label": sum(not video["labels"] for video in built),
        "skipped_by_reason": dict(
            sorted(Counter(s["reason"] for s in skipped).items())
        ),
        "skipped": skipped,
        "left_out": {k: list(v) for k, v in read.left_out.get(split, {}).items()},
        "notes": {name: count for name, count in sorted(notes.items()) if count},
        "frames": sum(video["frames"] for video in built),
        "bytes": sum(report["bytes"] for report in reports),
        "seconds": round(math.fsum(video["seconds"] for video in built), 3),
        "frames_per_video": {
            "min": min(lengths),
            "median": statistics.median(lengths),
            "max": max(lengths),
            f"shorter_than_{SHORT_VIDEO_FRAMES}": sum(
                video["frames"] < SHORT_VIDEO_FRAMES for video in built
            ),
        },
        "labels_per_class": [labels[i] for i in range(len(read.classes))],
        "shards": [
            {
                "file": report["shard"],
                "records": report["records"],
                "frames": sum(video["frames"] for video in report["built"]),
                "bytes": report["bytes"],
                "sha256": report["sha256"],
            }
            for report in reports
        ],
    }


def merge(folder: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Adds the splits that were built by an earlier command."""
    if not (folder / INFO_NAME).is_file():
        return new
    try:
        old = records.DatasetInfo.load(folder.parent, folder.name).raw
    except ValueError:  # of another version, whose shards are gone: nothing to keep
        return new
    kept = {
        name: split
        for name, split in old["splits"].items()
        if name not in new["splits"]
        and all((folder / shard["file"]).is_file() for shard in split["shards"])
    }
    if kept and old["classes"] != new["classes"]:
        raise ValueError(
            f"{folder / INFO_NAME}: split {', '.join(kept)} was built with another"
            " class list. Build all splits in one command, with --overwrite."
        )
    splits, sources = {**kept, **new["splits"]}, old["sources"] if kept else {}
    return {
        **new,
        "sources": dict(sorted({**sources, **new["sources"]}.items())),
        "splits": {name: splits[name] for name in manifest.SPLITS if name in splits},
    }


def table(info: records.DatasetInfo) -> str:
    """The description as text for people."""
    raw = info.raw
    classes = f"{len(info.classes)} classes ({raw['label_kind']})"
    lines = [
        f"{info.folder}: {info.fps:g} fps, short side {info.short_side} px, JPEG"
        f" quality {raw['jpeg_quality']}, {classes}",
        f"{'split':6}{'expected':>9}{'built':>7}{'skipped':>8}{'no label':>9}"
        f"{'frames':>10}{'hours':>7}{'MB':>9}{'shards':>7}",
    ]
    for name, split in info.splits.items():
        lines.append(
            f"{name:6}{split['videos_expected']:9}{split['videos_built']:7}"
            f"{split['videos_skipped']:8}{split['videos_without_label']:9}"
            f"{split['frames']:10}{split['seconds'] / 3600:7.2f}"
            f"{split['bytes'] / 1e6:9.1f}{len(split['shards']):7}"
        )
    for name, split in info.splits.items():
        lines += _details(name, split, info.coverage(name))
    return "\n".join([*lines, *raw["remarks"]])


def _details(name: str, split: dict[str, Any], coverage: dict[str, Any]) -> list[str]:
    lines, count = [], split["frames_per_video"]
    if coverage["official_videos"]:
        lines.append(
            f"{name}: coverage {coverage['share']:.1%}: {coverage['videos_built']:,} of"
            f" the {coverage['official_videos']:,} official videos"
        )
    lines.append(
        f"{name}: frames per video min {count['min']}, median {count['median']:g}, max"
        f" {count['max']}; {count[f'shorter_than_{SHORT_VIDEO_FRAMES}']} of"
        f" {split['videos_built']} have fewer than {SHORT_VIDEO_FRAMES}"
    )
    if split["notes"]:
        lines.append(f"{name}: annotations and files: {_counts(split['notes'])}")
    for reason, names in split["left_out"].items():
        lines.append(f"{name}: left out: {len(names)} {reason}")
        lines += _first(names)
    if split["skipped"]:
        lines.append(f"{name}: skipped: {_counts(split['skipped_by_reason'])}")
        lines += _first(
            [f"{s['id']}  {s['reason']}: {s['detail']}" for s in split["skipped"]]
        )
    return lines


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _first(items: Sequence[str]) -> list[str]:
    lines = [f"  {item}" for item in items[:20]]
    if len(items) > 20:
        lines.append(f"  ... all {len(items)} are in {INFO_NAME}")
    return lines
