"""Your own videos, named in csv lists with times and labels."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

from data import manifest, reading

LAYOUT = """\
csv expects the lists of the two splits, and the videos that they name:
  ANNOTATIONS_DIR/train.csv
  ANNOTATIONS_DIR/test.csv
  ANNOTATIONS_DIR/classes.txt    (if there: one class a line, in the order of the ids)
  VIDEOS_DIR/<path>              (by default ANNOTATIONS_DIR/<path>)
The first line of a list is path,start,end,labels, such as
  path,start,end,labels
  kitchen/a.mp4,,,cooking
  kitchen/b.mp4,12.5,20,cooking;talking
Times are in seconds; where they are empty, the clip starts or ends with its file.
Labels are joined by ';'; start and end may be left out. Name the folders with
--annotations_dir and --videos_dir."""

REQUIRED = ("path", "labels")
COLUMNS = ("path", "start", "end", "labels")
CLASSES_FILE = "classes.txt"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the files are."""

    annotations_dir: Path = manifest.option("folder of train.csv and test.csv")
    videos_dir: Path | None = manifest.option(
        "folder from which paths count (default: that of the lists)", None
    )
    name: str = manifest.option("of the data set; recipes bind it as DATASET", "csv")

    def __post_init__(self):
        manifest.check_name("csv", self.name)


@dataclasses.dataclass(frozen=True)
class _Row:
    file: Path
    line: int
    path: str
    start: float
    end: float  # infinite for the end of the file
    labels: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.file.name}, line {self.line}"

    @property
    def times(self) -> str:
        if self.start == 0 and self.end == math.inf:
            return ""
        end = "end" if self.end == math.inf else f"{self.end:.10g}"
        return f"_{self.start:.10g}-{end}"


def read(settings: Settings, splits: Sequence[str]) -> manifest.Annotations:
    """Reads the lists; both where both are there, whichever split is built.

    Classes are those of classes.txt, or all labels of both lists, sorted.  Labels are
    of several kinds when any row has not exactly one.

    Raises:
      ValueError: naming file and line, for what cannot be right.
    """
    folder = settings.annotations_dir
    files = {split: folder / f"{split}.csv" for split in manifest.SPLITS}
    rows = {
        split: _rows(reading.existing(path, LAYOUT))
        for split, path in files.items()
        if split in splits or path.is_file()
    }
    sources = [files[split] for split in rows]
    every = [row for members in rows.values() for row in members]
    classes = sorted({label for row in every for label in row.labels})
    if (folder / CLASSES_FILE).is_file():
        sources.append(folder / CLASSES_FILE)
        classes = reading.class_list(folder / CLASSES_FILE)
    labels = {name: label for label, name in enumerate(classes)}
    for row in every:
        for name in row.labels:
            if name not in labels:
                wanted = f"one of the {len(classes)} classes of {CLASSES_FILE}"
                _fail(row, wanted, name, "correct the label, or add it there")
    _check_overlap(rows)
    names = [f"{PurePosixPath(row.path).with_suffix('')}{row.times}" for row in every]
    keys = [f"{row.path}{row.times}" for row in every]
    ids = dict(zip(every, manifest.unique_ids(names, keys), strict=True))
    videos_dir = settings.videos_dir or folder
    return manifest.Annotations(
        label_kind=(
            "single_label"
            if all(len(row.labels) == 1 for row in every)
            else "multi_label"
        ),
        classes=classes,
        clips={
            split: [
                manifest.Clip(
                    video_id=ids[row],
                    video_path=videos_dir / row.path,
                    start_seconds=row.start,
                    end_seconds=None if row.end == math.inf else row.end,
                    label_ids=tuple(sorted(labels[name] for name in row.labels)),
                )
                for row in rows[split]
            ]
            for split in splits
        },
        sources=sources,
    )


def _rows(file: Path) -> list[_Row]:
    def check(header: list[str]) -> None:
        known = set(header) <= set(COLUMNS) and set(REQUIRED) <= set(header)
        if not known or len(set(header)) < len(header):
            reading.fail(
                file,
                1,
                "the columns path,labels or path,start,end,labels",
                ",".join(header) or "an empty file",
                "correct the first line; columns are separated by commas",
            )

    rows = [_row(file, line, row) for line, row in reading.table(file, check)]
    seen: dict[tuple, int] = {}
    for row in rows:
        key = (row.path, row.start, row.end)
        if key in seen:
            _fail(
                row,
                "each clip once",
                f"{row.path}{row.times}, also on line {seen[key]}",
                "remove one of the two rows, or join their labels with ';'",
            )
        seen[key] = row.line
    return rows


def _row(file: Path, line: int, fields: dict[str, str]) -> _Row:
    path = PurePosixPath(fields["path"].strip())
    if path == PurePosixPath() or path.is_absolute() or ".." in path.parts:
        reading.fail(
            file, line, "a path below VIDEOS_DIR", fields["path"], "correct the path"
        )
    row = _Row(
        file=file,
        line=line,
        path=str(path),
        start=_seconds(file, line, fields.get("start", ""), empty=0.0),
        end=_seconds(file, line, fields.get("end", ""), empty=math.inf),
        labels=_labels(file, line, fields["labels"]),
    )
    if row.end <= row.start:
        got = f"{row.start:g} to {row.end:g}"
        _fail(row, "an end after the start", got, "correct the times")
    return row


def _seconds(file: Path, line: int, text: str, *, empty: float) -> float:
    if not text.strip():
        return empty
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        advice = "write 75.5 and not 1:15.5, or leave it empty"
        reading.fail(file, line, "a time in seconds, 0 or more", text, advice)
    return seconds


def _labels(file: Path, line: int, text: str) -> tuple[str, ...]:
    if not text.strip():
        return ()
    labels = tuple(label.strip() for label in text.split(";"))
    if "" in labels or len(set(labels)) < len(labels):
        wanted = "labels joined by ';', each once"
        reading.fail(file, line, wanted, text, "correct the labels")
    return labels


def _check_overlap(rows: dict[str, list[_Row]]) -> None:
    """Raises a ValueError where a moment of a video is in both lists."""
    train: dict[str, list[_Row]] = {}
    for row in rows.get("train", ()):
        train.setdefault(row.path, []).append(row)
    for row in rows.get("test", ()):
        for other in train.get(row.path, ()):
            if row.start < other.end and other.start < row.end:
                _fail(
                    row,
                    "moments that train does not have",
                    f"{row.path}{row.times}, which shares some with {other.where}",
                    "remove one of the two rows",
                )


def _fail(row: _Row, wanted: str, got: str, advice: str) -> NoReturn:
    reading.fail(row.file, row.line, wanted, got, advice)
