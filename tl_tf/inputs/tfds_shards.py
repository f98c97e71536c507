"""An image data set that TFDS has prepared, read from its TFRecord files.

We read the files ourselves, because the order is then ours, and the iterator can be
saved.  Nothing is downloaded, and none of the data set's code is run.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tl_tf.inputs import image_augment, real_labels
from tl_tf.inputs import split as splits

PREFIX = "tfds:"  # of image_dataset.dataset
READ_SHARDS = 16  # at once, one record of each in turn
MIN_SHUFFLE_IMAGES = 16
LABELS = {"label": ("label", "original_label"), "real": ("real_label",)}  # features
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which records of which file; `first` is the index of the first of them."""

    path: str
    skip: int
    take: int
    first: int


@dataclasses.dataclass(frozen=True)
class Shards:
    """The images of a split, or of a part of it, in their one order.

    Attributes:
      folder: of the data set's version.
      split: as asked for, with its part.
      classes: names, in the order of the labels.
      shards: on all hosts.
      features: TFDS's, those that are read.
      label_key: the feature that is the label, or "file_name" to look in `real_table`.
      real_table: ReaL labels by file number, int32 [images, L], or None.
      stored: what the images have in common.
      shuffle_images: in the shuffle buffer.
      num_hosts: each of them reads every num_hosts-th shard, or every num_hosts-th
        record where there are fewer shards than hosts.
      host: which of them this is, from 0.
    """

    folder: str
    split: str
    classes: list[str]
    shards: list[Shard]
    features: Any
    label_key: str
    real_table: tf.Tensor | None
    stored: image_augment.Stored
    shuffle_images: int
    num_hosts: int
    host: int
    skipped: Sequence[dict[str, Any]] = ()  # TFDS leaves no image out

    @classmethod
    def open(
        cls,
        data_dir: str | Path,
        dataset: str,
        split: str,
        *,
        labels_from: str = "label",
        real_json: str | Path | None = None,
        shuffle_buffer_mb: float = 64,
        num_hosts: int = 1,
        host: int = 0,
    ) -> "Shards":
        """Looks up files, features and classes; no record is read.

        Args:
          data_dir: what TFDS calls so.
          dataset: "tfds:name", "tfds:name/config", either with ":1.2.3" for a version
            other than the highest that is there.
          split: TFDS's, as "train", "train[:10%]" or "train+test".
          labels_from: "label" for the features "label" or "original_label", "real" for
            "real_label" or, by "file_name", `real_json`.
          real_json: path of ReaL's labels, for a data set without them.
          shuffle_buffer_mb: of encoded images, in 10^6 bytes.
          num_hosts: how many share the images out.
          host: which of them this is, from 0.

        Raises:
          ValueError: for a data set that is not prepared, or not of labelled images.
        """
        import tensorflow_datasets as tfds  # a second, for those who use it

        folder = _find_folder(str(data_dir), dataset)
        info = tfds.builder_from_directory(folder).info
        if info.file_format.value != "tfrecord":
            raise ValueError(
                f"{folder}: wanted TFRecord files, got {info.file_format.value}."
                " Prepare the data set as file_format='tfrecord'."
            )
        try:
            part = info.splits[split]
            instructions, num_images = part.file_instructions, part.num_examples
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{folder}: wanted a split {split!r}, got {', '.join(info.splits)}. Set"
                " image_dataset.split to one of them, or a part as 'train[:10%]'."
            ) from error
        if num_images < num_hosts:
            raise ValueError(
                f"{folder}: {num_hosts} hosts want an image each, split {split!r} has"
                f" {num_images}. Run fewer hosts."
            )
        key = _label_key(info.features, folder, labels_from, real_json=real_json)
        label = info.features["label" if key == "file_name" else key]
        classes = list(getattr(label, "feature", label).names)
        table = None
        if key == "file_name":
            table = tf.constant(
                real_labels.read_table(real_json, num_classes=len(classes))
            )
        shards, first = [], 0
        for one in instructions:
            shards.append(Shard(os.fspath(one.filename), one.skip, one.take, first))
            first += one.take
        used = {name: info.features[name] for name in ("image", key)}
        shape = used["image"].shape[:2]
        whole = info.splits.values()  # TFDS does not know the bytes of a part
        num_bytes = sum(one.num_bytes for one in whole)
        mean_bytes = max(num_bytes / sum(one.num_examples for one in whole), 1)
        buffer = max(round(shuffle_buffer_mb * 1e6 / mean_bytes), MIN_SHUFFLE_IMAGES)
        return cls(
            folder=folder,
            split=split,
            classes=classes,
            shards=shards,
            features=tfds.features.FeaturesDict(used),
            label_key=key,
            real_table=table,
            stored=image_augment.Stored(
                # Its encoding_format says nothing: TFDS stores files as they come.
                formats=frozenset(["jpeg", "png"]),
                size=None if None in shape else tuple(shape),
            ),
            shuffle_images=buffer,
            num_hosts=num_hosts,
            host=host,
        )

    @property
    def facts(self) -> str:
        """Which version, and how it is stored."""
        version = os.path.basename(self.folder)
        return f"TFDS {version}; {len(self.shards)} shards; EXIF is not looked at"

    @property
    def rows(self) -> Sequence[int]:
        """Of each image its index."""
        return range(sum(self.images_by_host))

    @property
    def examples(self) -> list[str]:
        """ "<split>-<index>" of each image; TFDS keeps no names."""
        return [f"{self.split}-{index}" for index in self.rows]

    @property
    def images_by_host(self) -> list[int]:
        """How many images each host reads."""
        if self._splits_shards:
            return [
                sum(len(range(host, one.take, self.num_hosts)) for one in self.shards)
                for host in range(self.num_hosts)
            ]
        return [
            sum(one.take for one in self.shards[host :: self.num_hosts])
            for host in range(self.num_hosts)
        ]

    def read(self, seed: tf.Tensor | None) -> tf.data.Dataset:
        """{index, record} of each image of the host, shuffled if there is a seed."""
        shards = self._own_shards
        paths = tf.constant([one.path for one in shards])
        bounds = tf.constant([[s.skip, s.take, s.first] for s in shards], tf.int64)
        order = tf.range(len(shards))
        if seed is not None:
            seeds = tf.random.split(seed, 2)
            order = tf.random.experimental.stateless_shuffle(order, seeds[0])

        def read_shard(shard: tf.Tensor) -> tf.data.Dataset:
            skip, take, first = tf.unstack(bounds[shard])
            records = tf.data.TFRecordDataset(paths[shard]).skip(skip)
            # take(tensor) crashes within interleave (TensorFlow 2.20); zip takes too.
            indices = tf.data.Dataset.range(first, first + take)
            records = tf.data.Dataset.zip(indices, records)
            if self._splits_shards:
                records = records.shard(self.num_hosts, self.host)
            # Prefetching reads the shards in parallel: see video.py.
            return records.prefetch(1)

        num_images = self.images_by_host[self.host]
        images = (
            tf.data.Dataset.from_tensor_slices(order)
            .interleave(read_shard, cycle_length=min(READ_SHARDS, len(shards)))
            .map(lambda i, record: {"index": tf.cast(i, tf.int32), "record": record})
            .apply(tf.data.experimental.assert_cardinality(num_images))
        )
        if seed is None:
            return images
        return splits.shuffle(
            images, min(self.shuffle_images, num_images), seed=seeds[1]
        )

    def build_load(self) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
        """A function: {record} -> {data string [], orientation [], labels int [L]}."""
        import tensorflow_datasets as tfds

        skip = {"image": tfds.decode.SkipDecoding()}

        def load(image: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            parsed = self.features.deserialize_example(image["record"], decoders=skip)
            labels = parsed[self.label_key]
            if self.real_table is not None:
                labels = real_labels.labels_of(labels, self.real_table)
            return {
                "data": parsed["image"],
                "orientation": tf.constant(1),
                "labels": tf.reshape(labels, [-1]),
            }

        return load

    def explain(self, error: tf.errors.OpError) -> str:
        """Says which record of which shard stopped the stream, reading them again."""
        load = self.build_load()
        for one in self._own_shards:
            records = tf.data.TFRecordDataset(one.path).skip(one.skip).take(one.take)
            files = records.map(lambda record: load({"record": record})["data"])
            number, fault = image_augment.find_fault(files, self.stored)
            if not fault and number < one.take:
                fault = f"wanted {one.take} records, got {number}"
            if fault:
                return (
                    f"{one.path}: record {one.skip + number}: {fault}. Prepare the data"
                    " set again, and check the disk."
                )
        return f"{self.folder}: no image of {self.split!r} is damaged. {error.message}"

    @property
    def _splits_shards(self) -> bool:
        return len(self.shards) < self.num_hosts

    @property
    def _own_shards(self) -> list[Shard]:
        if self._splits_shards:
            return self.shards
        return self.shards[self.host :: self.num_hosts]


def _find_folder(data_dir: str, dataset: str) -> str:
    """<data_dir>/<name>[/<config>]/<version>, the highest if none is named."""
    name, _, version = dataset.removeprefix(PREFIX).partition(":")
    root = os.path.join(data_dir, name)
    found = [f.rstrip("/") for f in _listdir(root)]
    versions = [f for f in found if VERSION.fullmatch(f)]
    if version in versions or (versions and not version):
        by_number = sorted(versions, key=lambda v: [int(n) for n in v.split(".")])
        return os.path.join(root, version or by_number[-1])
    if versions:
        raise ValueError(
            f"{root}: wanted version {version}, got {', '.join(versions)}. Correct"
            " image_dataset.dataset, or prepare that version."
        )
    configs = [
        f for f in found if any(map(VERSION.fullmatch, _listdir(root + "/" + f)))
    ]
    if configs:
        raise ValueError(
            f"{root}: wanted a version, got the configs {', '.join(sorted(configs))}."
            f" Set image_dataset.dataset = '{PREFIX}{name}/{sorted(configs)[0]}'."
        )
    raise ValueError(
        f"{root}: wanted a data set that TFDS has prepared, got no version of it."
        f' Prepare it: python -c "import tensorflow_datasets as tfds;'
        f" tfds.builder('{name}', data_dir='{data_dir}').download_and_prepare()\""
    )


def _listdir(path: str) -> list[str]:
    """As the folder may be in a bucket; empty if there is none."""
    return tf.io.gfile.listdir(path) if tf.io.gfile.isdir(path) else []


def _label_key(
    features: Any, folder: str, labels_from: str, *, real_json: str | Path | None
) -> str:
    """The feature that is the label, or that leads to it."""
    wanted = LABELS[labels_from]
    if real_json is not None:
        wanted = ("file_name",)
    found = [name for name in wanted if name in features]
    if "image" not in features or not found:
        raise ValueError(
            f"{folder}: wanted the features image and {' or '.join(wanted)} for"
            f" labels_from={labels_from!r}, got {', '.join(features)}."
            " image_dataset reads sets of images with one class each, and ReaL."
        )
    return found[0]
