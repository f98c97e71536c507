"""Kinetics-400, -600 and -700: clips of 10 seconds, one class each."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from data import manifest, reading

LAYOUT = """\
kinetics expects the csv lists of one version, by the names of any of their sources:
  ANNOTATIONS_DIR/train.csv       or kinetics-400_train.csv
  ANNOTATIONS_DIR/val.csv         or validate.csv, kinetics-400_val.csv, ...
and its clips as the crawler or the CVDF archives name them, in any folders:
  VIDEOS_DIR/<folders>/<youtube id>_<start>_<end>.mp4
Its validation set becomes split test: the official test set has no labels.
Name the version and the folders with --version, --annotations_dir and --videos_dir."""

COLUMNS = ("label", "youtube_id", "time_start", "time_end")
OFFICIAL_VIDEOS = {
    400: {"train": 246_534, "test": 19_906},
    600: {"test": 30_000},
    700: {},
}
_LISTS = {"train": ("train",), "test": ("val", "validate", "validation")}

_YOUTUBE_ID = re.compile(r"[\w-]{11}", re.ASCII)
_CLIP = re.compile(r"([\w-]{11})_(\d+)_(\d+)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which version, and where its files are."""

    version: int = manifest.option("400, 600 or 700, which is its number of classes")
    annotations_dir: Path = manifest.option("folder of the csv lists")
    videos_dir: Path = manifest.option("folder that holds the clips, in any folders")
    classes_file: Path | None = manifest.option(
        "one label a line in the order of the ids, where the lists are parts of the"
        " official ones (default: all labels of the lists, sorted)",
        None,
    )

    def __post_init__(self):
        if self.version not in OFFICIAL_VIDEOS:
            known = ", ".join(map(str, OFFICIAL_VIDEOS))
            raise ValueError(
                f"kinetics: --version must be one of {known}, got {self.version}."
            )

    @property
    def name(self) -> str:
        """The versions share videos, and must not be mixed: each has its folder."""
        return f"kinetics{self.version}"


@dataclasses.dataclass(frozen=True)
class _Row:
    line: int
    label: str
    youtube_id: str
    start: int
    end: int

    @property
    def key(self) -> tuple[str, int]:
        """Some videos occur twice, with another start."""
        return self.youtube_id, self.start

    @property
    def clip_name(self) -> str:
        return f"{self.youtube_id}_{self.start:06d}_{self.end:06d}"


def read(settings: Settings, splits: Sequence[str]) -> manifest.Annotations:
    """Reads the lists, and finds the file of each clip by its name.

    Both lists are read where both are there: the class order, that of the sorted
    labels, must not depend on the split.

    Raises:
      ValueError: naming file and line, for whatever the official files do not contain.
    """
    if not settings.videos_dir.is_dir():
        raise ValueError(f"{settings.videos_dir}: no such folder.\n{LAYOUT}")
    files = {
        split: path
        for split in manifest.SPLITS
        if (path := _list_path(settings, split, is_needed=split in splits))
    }
    rows, left_out = {}, {}
    for split, path in files.items():
        rows[split], repeated = _rows(path, split)
        left_out[split] = {"repeated_row": repeated} if repeated else {}
    remarks = []
    if "test" in files:
        remarks.append(
            f"split test is the official validation set ({files['test'].name}): the"
            " official test set has no labels."
        )
    classes = _classes(settings, files, rows, remarks)
    labels = {name: label for label, name in enumerate(classes)}
    videos = _videos(settings.videos_dir)
    extra = len(set(videos) - {row.key for part in rows.values() for row in part})
    if extra:
        remarks.append(f"{extra} clips of VIDEOS_DIR are in none of the lists read.")
    return manifest.Annotations(
        label_kind="single_label",
        classes=classes,
        clips={
            split: [
                manifest.Clip(
                    video_id=row.clip_name,
                    video_path=videos.get(
                        row.key, settings.videos_dir / f"{row.clip_name}.mp4"
                    ),
                    label_ids=(labels[row.label],),
                )
                for row in rows[split]
            ]
            for split in splits
        },
        sources=[*files.values()]
        + ([settings.classes_file] if settings.classes_file else []),
        official_videos=OFFICIAL_VIDEOS[settings.version],
        left_out=left_out,
        remarks=remarks,
    )


def _list_path(settings: Settings, split: str, *, is_needed: bool) -> Path | None:
    folder = settings.annotations_dir
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder.\n{LAYOUT}")
    name = re.compile(
        rf"(kinetics[-_]?{settings.version}[-_])?({'|'.join(_LISTS[split])})\.csv"
    )
    found = sorted(path for path in folder.iterdir() if name.fullmatch(path.name))
    if len(found) > 1:
        raise ValueError(
            f"{folder}: wanted one list of split {split}, got"
            f" {', '.join(path.name for path in found)}. Keep one of them there."
        )
    if not found and is_needed:
        raise ValueError(f"{folder}: no list of split {split}.\n{LAYOUT}")
    return found[0] if found else None


def _rows(path: Path, split: str) -> tuple[list[_Row], list[str]]:
    """The rows of a list, and the clips that it repeats."""

    def check(header: list[str]) -> None:
        if not set(COLUMNS) <= set(header):
            reading.fail(
                path,
                1,
                f"the columns {','.join(COLUMNS)}",
                ",".join(header) or "an empty file",
                "use the list of the training or the validation set; that of the test"
                " set has no labels",
            )

    rows: dict[tuple[str, int], _Row] = {}
    repeated = []
    for line, fields in reading.table(path, check):
        row = _row(path, line, fields, split)
        other = rows.setdefault(row.key, row)
        if other.label != row.label:
            reading.fail(
                path,
                line,
                "one label a clip",
                f"{row.label} for {row.clip_name}, {other.label} on line {other.line}",
                "remove one of the two rows",
            )
        if other is not row:
            repeated.append(row.clip_name)
    return list(rows.values()), repeated


def _row(path: Path, line: int, fields: Mapping[str, str], split: str) -> _Row:
    label, youtube_id = fields["label"].strip(), fields["youtube_id"].strip()
    if not label:
        reading.fail(path, line, "a label", "none", "use the official file")
    if not _YOUTUBE_ID.fullmatch(youtube_id):
        reading.fail(
            path,
            line,
            "a YouTube id of 11 characters",
            youtube_id,
            "use the official file, not one saved by a spreadsheet",
        )
    if fields.get("split", "").strip() not in ("", *_LISTS[split]):
        reading.fail(
            path,
            line,
            f"split {' or '.join(_LISTS[split])}",
            fields["split"],
            "give the list its official name",
        )
    times = [fields["time_start"].strip(), fields["time_end"].strip()]
    if not all(t.isascii() and t.isdigit() for t in times) or int(times[0]) >= int(
        times[1]
    ):
        reading.fail(
            path,
            line,
            "a start and a later end in whole seconds",
            " and ".join(times),
            "use the official file",
        )
    return _Row(line, label, youtube_id, int(times[0]), int(times[1]))


def _classes(
    settings: Settings,
    files: Mapping[str, Path],
    rows: Mapping[str, Sequence[_Row]],
    remarks: list[str],
) -> list[str]:
    found = sorted({row.label for part in rows.values() for row in part})
    if settings.classes_file:
        path = reading.existing(settings.classes_file, LAYOUT)
        classes = reading.class_list(path)
        unknown = sorted(set(found) - set(classes))
        if unknown:
            raise ValueError(
                f"{path}: lacks {len(unknown)} labels of the lists, the first"
                f" {unknown[0]!r}. Give the class list of this version."
            )
    else:
        classes = found
        if len(found) > settings.version:
            names = ", ".join(path.name for path in files.values())
            raise ValueError(
                f"{names}: wanted at most {settings.version} classes, got {len(found)}."
                " Give --version as that of the lists, and do not mix them."
            )
    if len(classes) != settings.version:
        remarks.append(
            f"{len(classes)} of {settings.version} classes: label ids differ from those"
            " of the whole set, unless --classes_file gives all its labels."
        )
    return classes


def _videos(folder: Path) -> dict[tuple[str, int], Path]:
    """The clip files by YouTube id and start, whatever folders they are in."""
    videos: dict[tuple[str, int], Path] = {}
    for path in sorted(reading.files_below(folder)):
        match = _CLIP.fullmatch(path.stem)
        if not match or path.suffix.lower() not in reading.VIDEO_SUFFIXES:
            continue
        other = videos.setdefault((match[1], int(match[2])), path)
        if other is not path and other.resolve() != path.resolve():
            raise ValueError(
                f"{path}: another file of the clip {other}. Keep the better one: a"
                " replacement goes where the damaged file was."
            )
    return videos
