"""What a dataset tells the build: its options, its classes, and one Clip per video.

A dataset is a module of this package, listed in `DATASETS`, with

    LAYOUT                    the files it expects, for error messages
    Settings                  a dataclass of its command-line options, see `option`; its
                              `name` is that of the folder that is built
    read(settings, splits)    -> Annotations

and, when it makes its own videos, `make(settings, folder, run)`, which returns what
`read` then gets; see synthetic.py.  Nothing here may import TensorFlow: the command
line answers at once, and decoding processes stay small.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

# The first line of a module's docstring is what --help says of it.
DATASETS = {
    "folder": "data.folder",
    "csv": "data.csv_list",
    "charades": "data.charades",
    "kinetics": "data.kinetics",
    "avid": "data.avid",
    "synthetic": "data.synthetic",
}
SPLITS = ("train", "test")

_NAME = re.compile(r"\w[\w.-]*")
_NAME_PART = re.compile(r"[\w.-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MAX_NAME = 4096  # characters: of a path, on the systems we know
_UNSAFE = re.compile(r"[^\w.-]")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One video of a split, as its annotations describe it.

    Attributes:
      video_id: the dataset's own id, safe as a file name.
      video_path: where the file should be; it may be missing.
      start_seconds: where the clip starts in the file.
      end_seconds: where it ends; None for the end of the file.
      label_ids: class indices of the whole clip, ascending, without repetition.
      segments: (label id, start_seconds, end_seconds), as annotated, in file order.
      notes: names of annotation anomalies, one for each time one occurs.
      row: of the split, in file order from 0; the build counts them.  Evaluation ranks
        ties in this order.
    """

    video_id: str
    video_path: Path
    start_seconds: float = 0.0
    end_seconds: float | None = None
    label_ids: tuple[int, ...] = ()
    segments: tuple[tuple[int, float, float], ...] = ()
    notes: tuple[str, ...] = ()
    row: int = 0


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What a dataset's files say of the splits that were asked for.

    Attributes:
      label_kind: "multi_label" or "single_label".
      classes: in the order of the official list; a label id is an index into it.
      clips: of each split, in file order.
      sources: the files that were read.
      official_videos: of each split, how many videos the official list has; a split
        whose number is not known is left out.
      left_out: of each split, by reason, what is in the files and no video of the set.
      remarks: sentences that whoever reads a result should know.
    """

    label_kind: str
    classes: list[str]
    clips: Mapping[str, Sequence[Clip]]
    sources: Sequence[Path] = ()
    official_videos: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(
        default_factory=dict
    )
    remarks: Sequence[str] = ()


def check(dataset: str, read: Annotations) -> None:
    """Raises a ValueError for names that a file, or a terminal, would not stand.

    They come from annotation files and from file systems, whoever wrote those.
    """
    if not read.classes:
        raise ValueError(f"{dataset}: the annotations name no class.")
    for name in read.classes:
        if len(name) > MAX_NAME or _CONTROL.search(name):
            raise ValueError(
                f"{dataset}: wanted class names of at most {MAX_NAME} characters, none"
                f" of them a control character, got {name[:80]!r}. Rename the class."
            )
    for clip in (clip for clips in read.clips.values() for clip in clips):
        if len(clip.video_id) > MAX_NAME or not _NAME_PART.fullmatch(clip.video_id):
            raise ValueError(
                f"{dataset}: wanted a video id of at most {MAX_NAME} letters, digits,"
                f" '_', '-' and '.', got {clip.video_id[:80]!r}. Rename the video."
            )


def option(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of Settings that is a command-line option; without default, required."""
    return dataclasses.field(default=default, metadata={"help": text})


def check_name(dataset: str, name: str) -> None:
    """Raises a ValueError for a name that cannot be that of a folder of shards."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{dataset}: --name must consist of letters, digits, '_', '-' and '.', got"
            f" {name!r}. Recipes name the data set by it, and so does its folder."
        )
    if name != dataset and (name in DATASETS or name.startswith("kinetics")):
        raise ValueError(
            f"{dataset}: --name={name} is where data.build puts another data set."
            " Choose another name."
        )


def unique_ids(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Ids that are safe as file names.

    Folders are joined by "__", and what is neither letter, digit, dot nor dash becomes
    "_".  Names that would then look alike, in small letters too, get the CRC-32 of
    their key behind, so that no order decides.

    Args:
      names: to be read by people, such as "<class>/<file>".
      keys: of each name, what no other has.
    """
    ids = [_UNSAFE.sub("_", name.replace("/", "__")) for name in names]
    times = Counter(i.lower() for i in ids)
    return [
        i if times[i.lower()] == 1 else f"{i}-{_crc(key)}"
        for i, key in zip(ids, keys, strict=True)
    ]


def _crc(key: str) -> str:
    return f"{crc32(key.encode('utf-8', 'surrogateescape')):08x}"
