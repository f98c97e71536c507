"""Charades: 157 classes, several per video, from the official annotation files."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from data import manifest, reading

LAYOUT = """\
Charades expects, as unpacked from Charades.zip and Charades_v1_480.zip:
  ANNOTATIONS_DIR/Charades_v1_train.csv
  ANNOTATIONS_DIR/Charades_v1_test.csv
  ANNOTATIONS_DIR/Charades_v1_classes.txt
  VIDEOS_DIR/<id>.mp4    (by default ANNOTATIONS_DIR/Charades_v1_480/<id>.mp4)
Name the folders with --annotations_dir and --videos_dir."""

COLUMNS = (
    "id",
    "subject",
    "scene",
    "quality",
    "relevance",
    "verified",
    "script",
    "objects",
    "descriptions",
    "actions",
    "length",
)
CLASSES_FILE = "Charades_v1_classes.txt"
OFFICIAL_VIDEOS = {"train": 7985, "test": 1863}

# Upper case only: 19 official ids look like numbers (00607, 150E6), and a spreadsheet
# that rewrites them must not pass for a missing video.
_ID = re.compile(r"[A-Z0-9]{5}")
_ACTION = re.compile(r"c(\d{3}) (\d+\.?\d*) (\d+\.?\d*)")
_CLASS = re.compile(r"c(\d{3}) (\S.*)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the files are."""

    name: ClassVar[str] = "charades"
    annotations_dir: Path = manifest.option("folder of the official annotation files")
    videos_dir: Path | None = manifest.option(
        "folder of the videos (default: Charades_v1_480 beside the annotations)", None
    )


def default_videos_dir(annotations_dir: Path) -> Path:
    """Where the official archive of 480-pixel videos unpacks."""
    return annotations_dir / "Charades_v1_480"


def read(settings: Settings, splits: Sequence[str]) -> manifest.Annotations:
    """Reads the official files; see `clips` for what becomes of their oddities."""
    folder = settings.annotations_dir
    videos_dir = settings.videos_dir or default_videos_dir(folder)
    return manifest.Annotations(
        label_kind="multi_label",
        classes=classes(folder),
        clips={split: list(clips(split, folder, videos_dir)) for split in splits},
        sources=[folder / CLASSES_FILE, *(_csv_path(s, folder) for s in splits)],
        official_videos=OFFICIAL_VIDEOS,
    )


def classes(annotations_dir: Path) -> list[str]:
    """Class names; a label id is the NNN of `cNNN`, and its line, counted from 0."""
    path = reading.existing(annotations_dir / CLASSES_FILE, LAYOUT)
    names = []
    for number, line in enumerate(reading.text(path).splitlines(), 1):
        match = _CLASS.fullmatch(line.strip())
        if not match or int(match[1]) != number - 1:
            reading.fail(
                path, number, f"'c{number - 1:03d} <name>'", line, "unzip it again"
            )
        names.append(match[2])
    if not names:
        reading.fail(path, 1, "'c000 <name>'", "an empty file", "unzip it again")
    return names


def clips(
    split: str, annotations_dir: Path, videos_dir: Path
) -> Iterator[manifest.Clip]:
    """Yields one Clip per video of `split` ("train" or "test"), in file order.

    A video without actions has no label and stays: the official mAP ranks it last.
    Times past the video's length are cut to it.  A segment that starts after its end,
    or at or past the length, is dropped, and its label stays: so do the official
    evaluations, where such a segment covers no moment but names a class.

    Raises:
      ValueError: naming file and line, for whatever the official files do not contain.
    """
    num_classes = len(classes(annotations_dir))
    path = reading.existing(_csv_path(split, annotations_dir), LAYOUT)
    seen: dict[str, int] = {}
    for line, row in _rows(path):
        video_id, length = row["id"], _length(path, line, row["length"])
        if not _ID.fullmatch(video_id):
            reading.fail(
                path,
                line,
                "an id of 5 characters A-Z or 0-9",
                video_id,
                "use the official file, not one saved by a spreadsheet",
            )
        if video_id in seen:
            reading.fail(
                path,
                line,
                "each id once",
                f"{video_id}, also on line {seen[video_id]}",
                "remove one of the two rows",
            )
        seen[video_id] = line
        actions = _actions(path, line, row["actions"], num_classes)
        segments, notes = _cut(actions, length)
        labels = tuple(sorted({label for label, _, _ in actions}))
        if not labels:
            notes.append("no_actions")
        if len(labels) < len(set(actions)):
            notes.append("class_repeated")
        notes.extend(["action_repeated"] * (len(actions) - len(set(actions))))
        yield manifest.Clip(
            video_id=video_id,
            video_path=videos_dir / f"{video_id}.mp4",
            label_ids=labels,
            segments=tuple(segments),
            notes=tuple(notes),
        )


def _cut(
    actions: Sequence[tuple[int, float, float]], length: float
) -> tuple[list[tuple[int, float, float]], list[str]]:
    segments, notes = [], []
    for label, start, end in actions:
        if start > end:
            notes.append("start_after_end")
            continue
        if start >= length:
            notes.append("start_past_length")
            continue
        if end > length:  # 29 % of the official ones: times were rounded up
            notes.append("end_past_length")
        segments.append((label, start, min(end, length)))
    return segments, notes


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    def check(header: list[str]) -> None:
        if tuple(header) != COLUMNS:
            reading.fail(
                path,
                1,
                f"the header {','.join(COLUMNS)}",
                ",".join(header) or "an empty file",
                "use the official file",
            )

    return reading.table(path, check)


def _actions(
    path: Path, line: int, text: str, num_classes: int
) -> list[tuple[int, float, float]]:
    actions = []
    for item in text.split(";") if text else []:
        match = _ACTION.fullmatch(item)
        if not match or int(match[1]) >= num_classes:
            reading.fail(
                path,
                line,
                f"'cNNN start end' with NNN in 000..{num_classes - 1:03d}",
                item,
                "join actions with ';' and nothing else",
            )
        actions.append((int(match[1]), float(match[2]), float(match[3])))
    return actions


def _length(path: Path, line: int, text: str) -> float:
    try:
        length = float(text)
    except ValueError:
        length = math.nan
    if not 0 < length < math.inf:
        reading.fail(
            path, line, "a length above 0 seconds", text, "correct the last column"
        )
    return length


def _csv_path(split: str, annotations_dir: Path) -> Path:
    if split not in manifest.SPLITS:
        raise ValueError(
            f"charades: no split {split!r}; it has {', '.join(manifest.SPLITS)}."
        )
    return annotations_dir / f"Charades_v1_{split}.csv"
