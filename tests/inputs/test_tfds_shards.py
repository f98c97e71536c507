"""What TFDS has prepared, or has not; the stream itself is tested in test_image.py."""

import importlib.resources.abc
import os
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.inputs import image_files
from tl_tf.inputs import tfds_shards


@pytest.fixture(autouse=True)
def importlib_resources(monkeypatch):
    """TFDS wants a package that it does not bring when it writes; Python's will do."""
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)


FEATURES = {
    "image": tfds.features.Image(shape=(5, 7, 3), encoding_format="png"),
    "original_label": tfds.features.ClassLabel(names=["a", "b"]),
}


def write(folder, *, version: str = "1.0.0", features=None, **kwargs):
    """The data set "toy", of six images in one shard."""
    features = features or FEATURES
    images = [image_files.smooth(5, 7, seed=n) for n in range(6)]
    rows = [
        (n, {k: image if k == "image" else n % 2 for k in features})
        for n, image in enumerate(images)
    ]
    tfds.dataset_builders.store_as_tfds_dataset(
        "toy",
        version=version,
        data_dir=folder,
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": rows},
        **kwargs,
    )
    return folder


def test_the_highest_version_is_read_or_the_one_that_is_named(tmp_path):
    for version in "1.10.0", "1.9.0":
        write(tmp_path, version=version)
    shards = tfds_shards.Shards.open(tmp_path, "tfds:toy", "train")
    assert shards.folder == os.path.join(tmp_path, "toy", "1.10.0")
    assert shards.facts == "TFDS 1.10.0; 1 shards; EXIF is not looked at"
    assert shards.classes == ["a", "b"] and shards.stored.size == (5, 7)
    shards = tfds_shards.Shards.open(tmp_path, "tfds:toy:1.9.0", "train")
    assert shards.folder == os.path.join(tmp_path, "toy", "1.9.0")
    with pytest.raises(ValueError, match="wanted version 2.0.0, got 1"):
        tfds_shards.Shards.open(tmp_path, "tfds:toy:2.0.0", "train")


def test_images_come_as_they_were_stored(tmp_path):
    shards = tfds_shards.Shards.open(write(tmp_path), "tfds:toy", "train[50%:]")
    images = list(shards.read(None).map(shards.build_load()))
    assert len(images) == 3 and shards.images_by_host == [3]
    for image in images:
        pixels = tf.io.decode_png(image["data"]).numpy()
        seed = [
            n
            for n in range(6)
            if np.array_equal(pixels, image_files.smooth(5, 7, seed=n))
        ]
        assert image["labels"].numpy().tolist() == [seed[0] % 2]


def test_what_is_not_prepared_comes_with_the_command(tmp_path):
    message = (
        "other: wanted a data set that TFDS has prepared, got no version of it. Prepare"
        " it: python -c .import tensorflow_datasets as tfds; tfds.builder..other',"
        f" data_dir='{tmp_path}'..download_and_prepare"
    )
    with pytest.raises(ValueError, match=message):
        tfds_shards.Shards.open(tmp_path, "tfds:other", "train")


def test_what_cannot_be_read_is_named(tmp_path):
    write(tmp_path / "a")
    with pytest.raises(ValueError, match="wanted a split 'test', got train. Set"):
        tfds_shards.Shards.open(tmp_path / "a", "tfds:toy", "test")
    with pytest.raises(ValueError, match="wanted the features image and real_label"):
        tfds_shards.Shards.open(tmp_path / "a", "tfds:toy", "train", labels_from="real")
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "toy").rename(tmp_path / "b" / "inner")
    (tmp_path / "b" / "toy").mkdir()
    (tmp_path / "b" / "inner").rename(tmp_path / "b" / "toy" / "blur")
    with pytest.raises(ValueError, match="got the configs blur. Set .*'tfds:toy/blur'"):
        tfds_shards.Shards.open(tmp_path / "b", "tfds:toy", "train")


def test_a_damaged_record_is_named(tmp_path):
    write(tmp_path)
    shards = tfds_shards.Shards.open(tmp_path, "tfds:toy", "train")
    path = shards.shards[0].path
    records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    index = records[4].index(b"IDAT") + 20
    records[4] = records[4][:index] + b"\0\1\2\3" + records[4][index + 4 :]
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    error = tf.errors.InvalidArgumentError(None, None, "bad")
    message = f"{path}: record 4: wanted a whole image, got "
    assert shards.explain(error).startswith(message)
    with open(path, "r+b") as file:
        file.seek(60)
        file.write(b"xx")
    assert f"{path}: record 0: " in shards.explain(error)


def test_a_missing_record_is_named(tmp_path):
    shards = tfds_shards.Shards.open(write(tmp_path), "tfds:toy", "train")
    path = shards.shards[0].path
    records = list(tf.data.TFRecordDataset(path).take(5).as_numpy_iterator())
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    with pytest.raises(tf.errors.OpError) as error:
        list(shards.read(None))
    said = shards.explain(error.value)
    assert said.startswith(f"{path}: record 5: wanted 6 records, got 5. Prepare")
