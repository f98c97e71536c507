"""AViD: 887 classes, one a video, from the official JSON lists."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from data import manifest, reading

LAYOUT = """\
avid expects the two lists of the official repository, and the unpacked videos:
  ANNOTATIONS_DIR/avid_train.json
  ANNOTATIONS_DIR/avid_val.json
  VIDEOS_DIR/<8 letters>.mp4
Both lists are needed whichever split is built: some classes are in one of them alone.
Videos labelled "none", or with nothing, are left out and counted.
Name the folders with --annotations_dir and --videos_dir."""

NUM_CLASSES = 887
# Of the validation list's 46,850 videos, 3,505 are labelled "none" and 4 "".  Of the
# training videos the paper only says 410k, which is no number to measure with.
OFFICIAL_VIDEOS = {"test": 43_341}
_FILES = {"train": "avid_train.json", "test": "avid_val.json"}
_NO_ACTION = {"none": "labelled_none", "": "without_label"}
_VIDEO = re.compile(r"[\w-]+\.mp4", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the files are."""

    name: ClassVar[str] = "avid"
    annotations_dir: Path = manifest.option("folder of the official JSON lists")
    videos_dir: Path = manifest.option("folder of the videos")


def read(settings: Settings, splits: Sequence[str]) -> manifest.Annotations:
    """Reads both lists; classes are all their labels, sorted, without "none" and "".

    Raises:
      ValueError: naming file and video, for whatever the official files do not contain.
    """
    files = {
        split: reading.existing(settings.annotations_dir / name, LAYOUT)
        for split, name in _FILES.items()
    }
    lists = {split: _labels(path) for split, path in files.items()}
    classes = sorted(
        {n for part in lists.values() for n in part.values()} - {*_NO_ACTION}
    )
    labels = {name: label for label, name in enumerate(classes)}
    remarks = []
    if len(classes) != NUM_CLASSES:
        remarks.append(
            f"{len(classes)} classes are in the lists; the paper reports {NUM_CLASSES}."
        )
    return manifest.Annotations(
        label_kind="single_label",
        classes=classes,
        clips={
            split: [
                manifest.Clip(
                    video_id=Path(file).stem,
                    video_path=settings.videos_dir / file,
                    label_ids=(labels[name],),
                )
                for file, name in lists[split].items()
                if name in labels
            ]
            for split in splits
        },
        sources=list(files.values()),
        official_videos=OFFICIAL_VIDEOS,
        left_out={split: _left_out(lists[split]) for split in splits},
        remarks=remarks,
    )


def _labels(path: Path) -> dict[str, str]:
    """The label of each video, in file order."""
    labels = reading.json_object(path)
    for file, label in labels.items():
        if not _VIDEO.fullmatch(file) or not isinstance(label, str):
            raise ValueError(
                f'{path}: wanted "<8 letters>.mp4": "<label>", got {file!r}:'
                f" {str(label)[:200]!r}. Use the official avid_train.json and"
                " avid_val.json."
            )
    return labels


def _left_out(labels: dict[str, str]) -> dict[str, list[str]]:
    reasons = {
        reason: [file for file, label in labels.items() if label == name]
        for name, reason in _NO_ACTION.items()
    }
    return {reason: files for reason, files in reasons.items() if files}
