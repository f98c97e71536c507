"""A folder of class folders: <data_dir>/<dataset>/<split>/<class>/*.jpg, .jpeg or .png.

Classes are the names of the training split's folders, sorted; the images of a split are
sorted by class, then by file name, whatever order the file system gives them in.
"""

import dataclasses
import itertools
import os
import re
import warnings
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import logging

from tl_tf.inputs import image_augment, real_labels

CLASSES_FROM = "train"  # the split whose folders are the classes
SUFFIXES = {".jpg", ".jpeg", ".png"}  # in any case
FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}  # what Pillow calls them
ORIENTATION_TAG = 0x0112  # EXIF
THREADS = 16
CHUNK = 256  # a future for each file would cost as much as its header
FILES_WORTH_A_LINE = 50_000  # opening fewer takes seconds
MAX_PIXELS = 1 << 26  # of an image: decoded, it has 200 MB
NAMED_FILES = 5  # in an error
PART = re.compile(r"([^\[\]]+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?")


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes of an image file say; `fault` if it cannot be used."""

    format: str = ""
    orientation: int = 1
    size: tuple[int, int] = (0, 0)  # upright height and width
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images of a split, or of a part of it, in their one order.

    Attributes:
      root: the split's folder.
      split: as asked for, with its part.
      classes: names, in the order of the labels.
      examples: "<class>/<file>" of every image that can be read, on all hosts.
      rows: where each of them stands in the list that includes the broken ones.
      labels: int32 [files, L], -1 for none.
      orientations: int32 [files], as in EXIF.
      stored: what the files have in common.
      skipped: {"id", "row", "labels"} of files that are not images.
      num_others: files of other suffixes, which are left out.
      num_hosts: each of them reads every num_hosts-th file.
      host: which of them this is, from 0.
    """

    root: Path
    split: str
    classes: list[str]
    examples: list[str]
    rows: list[int]
    labels: np.ndarray
    orientations: np.ndarray
    stored: image_augment.Stored
    skipped: list[dict[str, Any]]
    num_others: int
    num_hosts: int
    host: int

    @classmethod
    def scan(
        cls,
        data_dir: str | Path,
        dataset: str,
        split: str,
        *,
        max_broken_share: float = 0.0,
        real_json: str | Path | None = None,
        num_hosts: int = 1,
        host: int = 0,
    ) -> "Folder":
        """Lists the files of a split and reads their headers.

        Args:
          data_dir: folder that holds the data set's folder.
          dataset: its name.
          split: a folder's name, or a part as "train[:90%]" or "train[90%:]": of every
            class the files from one share to another in the order of their names, so
            that parts with a common bound share nothing and leave nothing out.
          max_broken_share: of the files that may be no images.
          real_json: path of ReaL's labels, which then take the place of the classes'.
          num_hosts: each of them reads every num_hosts-th file.
          host: which of them this is, from 0.

        Raises:
          ValueError: for a folder that is missing or not of this shape, a file that is
            no image, a split that is not of this form.
        """
        folder = Path(data_dir) / dataset
        name, start, stop = _parse(split)
        classes = _class_names(folder, CLASSES_FROM)
        own = _class_names(folder, name)
        unknown = sorted(set(own) - set(classes))
        if unknown:
            raise ValueError(
                f"{folder / name}: wanted classes of {folder / CLASSES_FROM}, got"
                f" {', '.join(unknown[:NAMED_FILES])}. Rename or remove these folders."
            )
        ids = {name: i for i, name in enumerate(classes)}
        files, num_others = [], 0
        for class_name in own:
            found, others = _image_files(folder / name / class_name)
            first, last = (_share_of(len(found), at) for at in (start, stop))
            files += [f"{class_name}/{file}" for file in found[first:last]]
            num_others += others
        if not files:
            raise ValueError(
                f"{folder / name}: split {split!r} has no images; wanted files of"
                f" {', '.join(sorted(SUFFIXES))} in class folders."
            )
        headers = _read_headers(folder / name, files)
        good = [row for row, header in enumerate(headers) if not header.fault]
        broken = [row for row, header in enumerate(headers) if header.fault]
        if broken and (not good or len(broken) > max_broken_share * len(files)):
            named = "; ".join(
                f"{files[row]} ({headers[row].fault})" for row in broken[:NAMED_FILES]
            )
            raise ValueError(
                f"{folder / name}: {len(broken)} of {len(files)} files are no images:"
                f" {named}{'; ...' if len(broken) > NAMED_FILES else ''}. Replace or"
                " remove them, or raise image_dataset.max_broken_share (here"
                f" {max_broken_share}) to leave them out."
            )
        labels = [[ids[file.split("/")[0]]] for file in files]
        if real_json is not None:
            table = real_labels.read_table(real_json, num_classes=len(classes))
            names = (file.split("/")[1] for file in files)
            labels = [
                table[real_labels.row_of(name, num_rows=len(table))] for name in names
            ]
        if len(good) < num_hosts:
            raise ValueError(
                f"{folder / name}: {num_hosts} hosts want an image each, split"
                f" {split!r} has {len(good)}. Run fewer hosts."
            )
        orientations = [headers[row].orientation for row in good]
        sizes = {headers[row].size for row in good}
        return cls(
            root=folder / name,
            split=split,
            classes=classes,
            examples=[files[row] for row in good],
            rows=good,
            labels=np.array([labels[row] for row in good], np.int32),
            orientations=np.array(orientations, np.int32),
            stored=image_augment.Stored(
                formats=frozenset(headers[row].format for row in good),
                is_turned=max(orientations) > 1,
                size=sizes.pop() if len(sizes) == 1 else None,
            ),
            skipped=[
                {
                    "id": files[row],
                    "row": row,
                    "labels": [int(k) for k in labels[row] if k >= 0],
                }
                for row in broken
            ],
            num_others=num_others,
            num_hosts=num_hosts,
            host=host,
        )

    @property
    def facts(self) -> str:
        """What the files are, in a few words."""
        turned = int((self.orientations > 1).sum())
        said = [" and ".join(sorted(self.stored.formats)).upper()]
        if self.stored.size:
            said.append("{} x {} px".format(*self.stored.size))
        if turned:
            said.append(f"{turned} turned as EXIF says")
        if self.skipped:
            said.append(f"{len(self.skipped)} that are no images left out")
        if self.num_others:
            said.append(f"{self.num_others} files of other suffixes left out")
        return "; ".join(said)

    @property
    def images_by_host(self) -> list[int]:
        """How many images each host reads."""
        return [len(self._indices(host)) for host in range(self.num_hosts)]

    def read(self, seed: tf.Tensor | None) -> tf.data.Dataset:
        """{index} of each image of the host once, shuffled if there is a seed."""
        indices = tf.range(self.host, len(self.examples), self.num_hosts)
        if seed is not None:
            indices = tf.random.experimental.stateless_shuffle(indices, seed)
        return tf.data.Dataset.from_tensor_slices({"index": indices})

    def build_load(self) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
        """A function: {index} -> {data string [], orientation int32 [], labels [L]}.

        To be called outside of Dataset.map: the lists that it reads from, which may be
        large, would otherwise become part of the graph.
        """
        paths = tf.constant([str(self.root / file) for file in self.examples])
        orientations, labels = tf.constant(self.orientations), tf.constant(self.labels)

        def load(image: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            index = image["index"]
            return {
                "data": tf.io.read_file(paths[index]),
                "orientation": orientations[index],
                "labels": labels[index],
            }

        return load

    def explain(self, error: tf.errors.OpError) -> str:
        """Says which file stopped the stream, if need be by decoding them all again."""
        if isinstance(error, tf.errors.NotFoundError):
            return f"{error.message.splitlines()[0]}. Restore the file, or start anew."
        indices = self._indices(self.host)
        logging.warning("Decoding %d files to find the damaged one.", len(indices))
        paths = [str(self.root / self.examples[index]) for index in indices]
        files = tf.data.Dataset.from_tensor_slices(paths).map(tf.io.read_file)
        number, fault = image_augment.find_fault(files, self.stored)
        if fault:
            return f"{paths[number]}: {fault}. Replace or remove the file."
        return f"{self.root}: no file of {self.split!r} is damaged. {error.message}"

    def _indices(self, host: int) -> range:
        return range(host, len(self.examples), self.num_hosts)


def read_header(path: Path) -> Header:
    """Format, EXIF orientation and size of an image file, its pixels left alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size
            image = PIL.Image.open(path)
        with image:
            if image.format not in FORMATS:
                return Header(fault=f"wanted JPEG or PNG, got {image.format}")
            if image.width * image.height > MAX_PIXELS:
                return Header(
                    fault=f"wanted at most {MAX_PIXELS:,} pixels, got"
                    f" {image.width} x {image.height}"
                )
            orientation, size = _orientation(image), (image.height, image.width)
            if orientation >= 5:
                size = size[::-1]
            return Header(FORMATS[image.format], orientation, size)
    except PIL.UnidentifiedImageError:
        return Header(fault="no image" if os.path.getsize(path) else "empty")
    except (
        OSError,
        SyntaxError,
        ValueError,
        PIL.Image.DecompressionBombError,
    ) as error:
        return Header(fault=str(error) or type(error).__name__)


def _orientation(image: PIL.Image.Image) -> int:
    """1..8; 1 as well where there is no EXIF, or none that can be read."""
    if "exif" not in image.info:  # getexif would decode a PNG file to look for it
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # as it comes, from the parsing of arbitrary bytes
        return 1
    return orientation if orientation in range(1, 9) else 1


def _read_headers(folder: Path, files: list[str]) -> list[Header]:
    if len(files) > FILES_WORTH_A_LINE:
        logging.info("%s: reading %d headers.", folder, len(files))
    chunks = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]

    def read(chunk: list[str]) -> list[Header]:
        return [read_header(folder / file) for file in chunk]

    with futures.ThreadPoolExecutor(THREADS) as pool:
        return list(itertools.chain.from_iterable(pool.map(read, chunks)))


def _parse(split: str) -> tuple[str, int, int]:
    """ "train[10%:]" -> "train", 10, 100."""
    match = PART.fullmatch(split)
    name, start, stop = match.groups() if match else (None, None, None)
    start, stop = int(start or 0), int(stop or 100)
    if not name or not 0 <= start < stop <= 100:
        raise ValueError(
            "image_dataset: split must be a folder's name, or a part of it in whole"
            f" percent as 'train[:90%]' or 'train[90%:]', got {split!r}."
        )
    return name, start, stop


def _share_of(count: int, percent: int) -> int:
    return (2 * count * percent + 100) // 200  # rounded


def _class_names(folder: Path, split: str) -> list[str]:
    root = folder / split
    if not root.is_dir():
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else None
        got = (
            f"got {', '.join(found) or 'nothing'}" if found is not None else "no folder"
        )
        raise ValueError(
            f"{folder}: wanted a folder {split!r} of class folders, {got}. Correct"
            " --data_dir, image_dataset.dataset ('tfds:NAME' for a set of TFDS) or"
            " image_dataset.split."
        )
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise ValueError(
            f"{root}: wanted a folder for each class, got none. Put each image at"
            f" {root}/<class>/<file>."
        )
    return names


def _image_files(folder: Path) -> tuple[list[str], int]:
    """Names of the image files, sorted, and how many others there are."""
    names = [e.name for e in os.scandir(folder) if not e.name.startswith(".")]
    images = [n for n in names if os.path.splitext(n)[1].lower() in SUFFIXES]
    return sorted(images), len(names) - len(images)
