"""Your own videos in class folders, `train/<class>/x.mp4` or `<class>/x.mp4`."""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from data import manifest, reading

LAYOUT = """\
folder expects videos in a folder for each class, divided into train and test:
  VIDEOS_DIR/train/<class>/x.mp4    VIDEOS_DIR/test/<class>/y.mp4
or not yet divided; --test_share of each class then becomes the test:
  VIDEOS_DIR/<class>/x.mp4
A class may have folders within. Symbolic links are followed. The classes are the
folders of train, sorted by name. Name the folder with --videos_dir."""

DEFAULT_TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where the videos are, and how they are divided."""

    videos_dir: Path = manifest.option("folder that holds train and test, or classes")
    name: str = manifest.option("of the data set; recipes bind it as DATASET", "folder")
    test_share: float | None = manifest.option(
        "share of each class that becomes the test, where there is no folder train"
        f" (default: {DEFAULT_TEST_SHARE})",
        None,
    )

    def __post_init__(self):
        manifest.check_name("folder", self.name)
        if self.test_share is not None and not 0 <= self.test_share <= 1:
            raise ValueError(
                f"folder: --test_share must be in 0..1, got {self.test_share:g}."
            )


@dataclasses.dataclass(frozen=True)
class _Video:
    path: Path
    key: str  # its path below VIDEOS_DIR
    name: str  # its class and its place therein, of which the id is made
    class_name: str


def read(settings: Settings, splits: Sequence[str]) -> manifest.Annotations:
    """Finds the videos; none is opened.

    Both splits are always looked at, so that classes, ids and the division do not
    depend on which of them is built.

    Raises:
      ValueError: naming the folder, for a layout that leaves a doubt.
    """
    root = settings.videos_dir
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder.\n{LAYOUT}")
    left_out: dict[str, dict[str, list[str]]] = {}
    remarks = []
    if any((root / split).is_dir() for split in manifest.SPLITS):
        if settings.test_share is not None:
            raise ValueError(
                f"{root}: is divided into train and test already. Leave out"
                " --test_share."
            )
        videos = _divided(root, left_out)
    else:
        share = settings.test_share
        share = DEFAULT_TEST_SHARE if share is None else share
        found = _in_class_folders(root, root, left_out.setdefault("train", {}))
        left_out["test"] = left_out["train"]
        videos = _divide(found, share)
        remarks.append(
            f"{share:.0%} of each class is test, by the checksums of the file names:"
            " VIDEOS_DIR has no folders train and test."
        )
    for split in splits:
        if not videos[split]:
            raise ValueError(
                f"{root}: no video for split {split}. Add some, or build the other with"
                f" --splits alone.\n{LAYOUT}"
            )
    classes = sorted({v.class_name for v in videos["train"] or videos["test"]})
    unknown = sorted({v.class_name for v in videos["test"]} - set(classes))
    if unknown:
        raise ValueError(
            f"{root}: test has classes that train has not: {', '.join(unknown)}. train"
            f" has {', '.join(classes)}. Rename or remove their folders."
        )
    _check_leak(videos)
    return manifest.Annotations(
        label_kind="single_label",
        classes=classes,
        clips={split: _clips(videos, classes)[split] for split in splits},
        left_out=left_out,
        remarks=remarks,
    )


def _divided(
    root: Path, left_out: dict[str, dict[str, list[str]]]
) -> dict[str, list[_Video]]:
    """The videos of folders train and test."""
    videos: dict[str, list[_Video]] = {}
    beside = [p for p in sorted(root.iterdir()) if p.name not in manifest.SPLITS]
    for split in manifest.SPLITS:
        out = left_out.setdefault(split, {})
        for path in beside:
            _leave_out(out, "beside_train_and_test", path.name)
        folder = root / split
        is_there = folder.is_dir()
        videos[split] = _in_class_folders(folder, root, out) if is_there else []
    return videos


def _in_class_folders(
    folder: Path, root: Path, out: dict[str, list[str]]
) -> list[_Video]:
    """The videos of `<folder>/<class>`, ordered by name."""
    videos = []
    for class_folder in folder.iterdir():
        name = class_folder.relative_to(root).as_posix()
        if class_folder.name.startswith("."):
            _leave_out(out, "hidden", name)
        elif not class_folder.is_dir():
            is_video = class_folder.suffix.lower() in reading.VIDEO_SUFFIXES
            _leave_out(out, "outside_a_class" if is_video else "not_a_video", name)
        else:
            found = list(_in_class(class_folder, folder, root, out))
            if not found:
                endings = " ".join(sorted(reading.VIDEO_SUFFIXES))
                raise ValueError(
                    f"{class_folder}: a class without a video. Add some, or remove the"
                    f" folder. A video ends in {endings}."
                )
            videos += found
    for names in out.values():
        names.sort()
    return sorted(videos, key=lambda video: video.key)


def _in_class(
    class_folder: Path, folder: Path, root: Path, out: dict[str, list[str]]
) -> Iterator[_Video]:
    class_name = _nfc(class_folder.name)
    try:
        class_name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{_printable(str(class_folder))}: the name of a class must be UTF-8."
            " Rename the folder."
        ) from error
    for path in reading.files_below(class_folder):
        key = path.relative_to(root).as_posix()
        if path.name.startswith("."):
            _leave_out(out, "hidden", key)
        elif path.suffix.lower() not in reading.VIDEO_SUFFIXES:
            _leave_out(out, "not_a_video", key)
        else:
            name = path.relative_to(folder).with_suffix("").as_posix()
            yield _Video(path, key=_nfc(key), name=_nfc(name), class_name=class_name)


def _divide(videos: Sequence[_Video], share: float) -> dict[str, list[_Video]]:
    """Puts a share of each class into test: those of the lowest checksums."""
    by_class: dict[str, list[_Video]] = {}
    for video in videos:
        by_class.setdefault(video.class_name, []).append(video)
    test = set()
    for members in by_class.values():
        members.sort(key=lambda video: _checksum(video.key))
        count = int(share * len(members) + 0.5)
        test.update(video.key for video in members[:count])
    return {
        "train": [video for video in videos if video.key not in test],
        "test": [video for video in videos if video.key in test],
    }


def _check_leak(videos: dict[str, list[_Video]]) -> None:
    """Raises a ValueError where both splits link to one file: a test on known data."""
    train = {video.path.resolve(): video for video in videos["train"]}
    for video in videos["test"]:
        twin = train.get(video.path.resolve())
        if twin is not None:
            raise ValueError(
                f"{video.path}: is the same file as {twin.path}, so a video of the test"
                " is trained on. Remove one of the two links."
            )


def _clips(
    videos: dict[str, list[_Video]], classes: Sequence[str]
) -> dict[str, list[manifest.Clip]]:
    every = [video for split in manifest.SPLITS for video in videos[split]]
    keys = [video.key for video in every]
    names = [video.name for video in every]
    ids = dict(zip(keys, manifest.unique_ids(names, keys), strict=True))
    labels = {name: label for label, name in enumerate(classes)}
    return {
        split: [
            manifest.Clip(
                video_id=ids[video.key],
                video_path=video.path,
                label_ids=(labels[video.class_name],),
            )
            for video in members
        ]
        for split, members in videos.items()
    }


def _leave_out(out: dict[str, list[str]], reason: str, name: str) -> None:
    out.setdefault(reason, []).append(_printable(name))


def _nfc(text: str) -> str:
    """One spelling of accented letters: file systems differ."""
    return unicodedata.normalize("NFC", text)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _checksum(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
