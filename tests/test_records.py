import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tl_tf import config, records
from tl_tf.inputs import split

CLASSES = ["sitting", "standing; still", "naïve walk"]
H, W, T = 5, 7, 3


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (H, W, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def example(**changes) -> bytes:
    arguments = {
        "fps": 12.0,
        "height": H,
        "width": W,
        "labels": [0, 2],
        "segments": [records.Segment(2, 0.5, 1.25), records.Segment(0, 0.0, 2.1)],
        "classes": CLASSES,
        "frames": [jpeg(i) for i in range(T)],
        **changes,
    }
    return records.encode("AAAA1", arguments.pop("frames"), **arguments)


def check(record):
    assert record["video_id"].numpy() == b"AAAA1"
    assert record["fps"].numpy() == 12
    assert record["schema_version"].numpy() == records.SCHEMA_VERSION
    assert record["frames"].numpy().tolist() == [jpeg(i) for i in range(T)]
    assert record["labels"].numpy().tolist() == [0, 2]
    assert record["segment_labels"].numpy().tolist() == [2, 0]
    assert record["size"].numpy().tolist() == [H, W]
    assert [c.decode() for c in record["classes"].numpy()] == CLASSES
    np.testing.assert_allclose(record["segment_starts"], [0.5, 0.0])
    np.testing.assert_allclose(record["segment_ends"], [1.25, 2.1], rtol=1e-6)


def test_round_trip_eagerly_and_in_a_dataset():
    check(records.parse(tf.constant(example())))
    (record,) = tf.data.Dataset.from_tensors(example()).map(records.parse)
    check(record)


def test_a_video_may_have_no_label():
    record = records.parse(tf.constant(example(labels=[], segments=[])))
    assert record["labels"].shape == 0 and record["segment_starts"].shape == 0


def test_the_same_arguments_give_the_same_bytes():
    assert example() == example()


def test_another_schema_parses_as_version_0():
    other = tf.train.SequenceExample(
        feature_lists=tf.train.FeatureLists(
            feature_list={
                "image/encoded": tf.train.FeatureList(
                    feature=[
                        tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"]))
                    ]
                )
            }
        )
    )
    record = records.parse(tf.constant(other.SerializeToString()))
    assert record["schema_version"].numpy() == 0


def test_no_frames_is_an_error():
    with pytest.raises(ValueError, match="AAAA1: wanted at least 1 frame, got 0"):
        example(frames=[])


@pytest.mark.parametrize(
    "changes", [{"labels": [3]}, {"segments": [records.Segment(-1, 0, 1)]}]
)
def test_a_label_outside_the_class_list_is_an_error(changes):
    with pytest.raises(
        ValueError, match=r"AAAA1: label -?\d is not in 0..2, the class"
    ):
        example(**changes)


def test_model_garden_reads_the_records(tmp_path):
    with config.registers_nothing():
        video_input = pytest.importorskip("official.vision.dataloaders.video_input")
    path = tmp_path / "x.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example(frames=[jpeg(i) for i in range(9)]))
    (serialized,) = tf.data.TFRecordDataset(str(path))
    decoded = video_input.Decoder().decode(serialized)
    labels = video_input.process_label(decoded["clip/label/index"], num_classes=3)
    assert labels.numpy().tolist() == [1, 0, 1]
    clip = video_input.process_image(
        decoded["image/encoded"],
        is_training=False,
        num_frames=4,
        stride=2,
        num_test_clips=1,
        min_resize=8,
        crop_size=6,
    )
    assert clip.shape == (4, 6, 6, 3)
    assert 0 <= clip.numpy().min() < clip.numpy().max() <= 1


@pytest.mark.parametrize(
    "video_id, num_shards, want",
    [("123456789", 1000, 0xCBF43926 % 1000), ("123456789", 1, 0), ("", 9, 0)],
)
def test_shard_of_is_crc_32(video_id, num_shards, want):
    # 0xCBF43926 is the check value in the definition of CRC-32.
    assert records.shard_of(video_id, num_shards) == want


def test_shard_name():
    want = "charades-train-00012-of-00256.tfrecord"
    assert records.shard_name("charades", "train", 12, 256) == want


def test_checksum_sees_order():
    checksum = records.class_list_checksum(CLASSES)
    assert checksum == records.class_list_checksum(list(CLASSES))
    assert checksum != records.class_list_checksum(CLASSES[::-1])
    assert len(checksum) == 8


SHARD = "toy-train-00000-of-00001.tfrecord"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    info = {
        "dataset": "toy",
        "schema_version": records.SCHEMA_VERSION,
        "fps": 12.0,
        "short_side": 256,
        "classes": CLASSES,
        "splits": {
            "train": {
                "videos_expected": 4,
                "videos_built": 3,
                "shards": [{"file": SHARD, "records": 3, "bytes": 0}],
            }
        },
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "toy-train-00000-of-00001.tfrecord").touch()
    built = [{"id": i, "row": row, "frames": 9} for row, i in enumerate("BAC")]
    report = {"shard": SHARD, "built": built, "skipped": []}
    (folder / "toy-train-00000-of-00001.json").write_text(json.dumps(report))
    return folder


def change(folder, **values):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_info_is_read_back(folder):
    info = records.DatasetInfo.load(folder.parent, "toy")
    assert (info.fps, info.short_side, info.classes) == (12.0, 256, CLASSES)
    assert info.video_ids("train") == [["B", "A", "C"]]
    assert info.coverage("train") == {
        "official_videos": None,
        "videos_expected": 4,
        "videos_built": 3,
        "videos_skipped": 1,
        "share": 0.75,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.fps = 3


@pytest.mark.parametrize("official, share", [(5, 3 / 5), (2, 3 / 4)])
def test_coverage_is_of_the_official_videos(folder, official, share):
    info = json.loads((folder / "dataset_info.json").read_text())
    entry = {**info["splits"]["train"], "official_videos": official}
    change(folder, splits={"train": entry})
    info = records.DatasetInfo.load(folder.parent, "toy")
    assert info.coverage("train")["share"] == share


def test_a_missing_dataset_names_the_command(tmp_path):
    with pytest.raises(
        ValueError, match="no such file. Build it with: python -m data."
    ):
        records.DatasetInfo.load(tmp_path, "toy")


@pytest.mark.parametrize(
    "content, wanted",
    [
        (b"{}", "not a data set description"),
        (b"[1, 2]", "not a data set description"),
        (b"", "not a data set description"),
        (b'{"dataset": "toy"', "not a data set description"),
        ("{}".encode("utf-16"), "not a data set description"),
        (b"[" * 10**6, "its lists are too deep"),
        (b"9" * 10**5, "not a data set description"),
        (b" " * (records.MAX_JSON_BYTES + 1), "wanted at most 64 MiB, got more"),
    ],
)
def test_an_unreadable_description_is_an_error(folder, content, wanted):
    (folder / "dataset_info.json").write_bytes(content)
    with pytest.raises(ValueError, match=wanted):
        records.DatasetInfo.load(folder.parent, "toy")


@pytest.mark.parametrize(
    "change_of, wanted",
    [
        ({"fps": 0}, "wanted fps above 0, got 0"),
        ({"fps": float("nan")}, "wanted fps above 0, got nan"),
        ({"fps": "12"}, "wanted fps above 0, got '12'"),
        ({"classes": []}, "wanted a list of classes, each once"),
        ({"classes": ["a", "a"]}, "wanted a list of classes, each once"),
        ({"splits": []}, "wanted splits by name"),
        ({"splits": {"train": {}}}, "split 'train' lacks its numbers"),
    ],
)
def test_a_description_that_cannot_be_is_an_error(folder, change_of, wanted):
    change(folder, **change_of)
    with pytest.raises(ValueError, match=f"dataset_info.json: {wanted}.*Build it"):
        records.DatasetInfo.load(folder.parent, "toy")


@pytest.mark.parametrize(
    "shards, wanted",
    [
        ([{"records": 3, "bytes": -1, "file": "a"}], "numbers that count nothing"),
        ([{"records": 2.5, "bytes": 1, "file": "a"}], "numbers that count nothing"),
        (
            [{"records": 2, "bytes": 1, "file": SHARD}],
            "wanted 3 videos in its sh.* got 2",
        ),
        ([{"records": 3, "bytes": 1, "file": "../a"}], "no file name: '../a'"),
        ([{"records": 3, "bytes": 1, "file": "/etc/a"}], "no file name: '/etc/a'"),
        ([{"records": 3, "bytes": 1, "file": ".."}], "no file name: '..'"),
        ([{"records": 3, "bytes": 1, "file": "a\0"}], "no file name"),
        ([{"records": 3, "bytes": 1, "file": 3}], "no file name: 3"),
        ([{"records": 0, "bytes": 1, "file": SHARD}] * 2, "lists a shard twice"),
    ],
)
def test_a_list_of_shards_that_cannot_be_is_an_error(folder, shards, wanted):
    entry = {"videos_expected": 3, "videos_built": 3, "shards": shards}
    change(folder, splits={"train": entry})
    with pytest.raises(ValueError, match=wanted):
        records.DatasetInfo.load(folder.parent, "toy")


def test_a_build_that_has_not_ended_is_told_from_a_missing_set(folder):
    (folder / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match="yet there are shards: their build has not"):
        records.DatasetInfo.load(folder.parent, "toy")


def test_a_shard_of_another_size_is_named(folder):
    (folder / SHARD).write_bytes(b"12345")
    info = records.DatasetInfo.load(folder.parent, "toy")
    with pytest.raises(
        ValueError, match=f"{SHARD}: wanted 0 bytes as .* got 5: it was"
    ):
        info.shard_paths("train")


@pytest.mark.parametrize(
    "report, wanted",
    [
        (None, "not the report of a shard .No such file"),
        ("{", "not the report of a shard"),
        ("[]", "wanted id, row and frames of every video"),
        ({"built": [{"id": "A"}]}, "wanted id, row and frames of every video"),
        ({"built": 1}, "wanted id, row and frames of every video"),
        ({"built": []}, "wanted 3 videos as dataset_info.json says, got 0"),
        ({"shard": "other"}, f"wanted the report of {SHARD}, got that of other"),
        (
            {"built": [{"id": "../a", "row": 0, "frames": 1}] * 3},
            "wanted id, row and frames of every video",
        ),
    ],
)
def test_a_report_that_cannot_be_is_an_error(folder, report, wanted):
    path = (folder / SHARD).with_suffix(".json")
    if isinstance(report, dict):
        report = json.dumps({**json.loads(path.read_text()), **report})
    path.unlink()
    if report is not None:
        path.write_text(report)
    info = records.DatasetInfo.load(folder.parent, "toy")
    with pytest.raises(ValueError, match=f"{path}: {wanted}.*Delete the shard and its"):
        info.reports("train")


def test_a_video_that_occurs_twice_is_an_error(folder):
    path = (folder / SHARD).with_suffix(".json")
    built = [{"id": i, "row": 0, "frames": 1} for i in "ABA"]
    path.write_text(json.dumps({"built": built, "skipped": []}))
    info = records.DatasetInfo.load(folder.parent, "toy")
    with pytest.raises(ValueError, match="wanted each video once, got A 2 times"):
        info.reports("train")


def test_another_schema_version_is_an_error(folder):
    change(folder, schema_version=0)
    with pytest.raises(ValueError, match="wanted schema version 1, got 0. Build it"):
        records.DatasetInfo.load(folder.parent, "toy")


def test_an_unknown_split_lists_the_known_ones(folder):
    info = records.DatasetInfo.load(folder.parent, "toy")
    with pytest.raises(ValueError, match=r"no split 'val'; it has \['train'\]"):
        info.split("val")


def test_a_missing_shard_is_named(folder):
    (folder / "toy-train-00000-of-00001.tfrecord").unlink()
    info = records.DatasetInfo.load(folder.parent, "toy")
    with pytest.raises(
        ValueError, match="00000-of-00001.tfrecord: the shard is missing"
    ):
        info.shard_paths("train")


@pytest.mark.parametrize(
    "dataset, command",
    [
        ("charades", "data.build charades --data_dir"),
        ("kinetics600", "data.build kinetics --version=600 --data_dir"),
        ("mine", r"data.build folder --name=mine \(or csv\) --data_dir"),
    ],
)
def test_a_missing_set_comes_with_its_command(tmp_path, dataset, command):
    with pytest.raises(ValueError, match=command):
        records.DatasetInfo.load(tmp_path, dataset)


def test_a_length_beyond_its_list_is_an_error_and_no_crash():
    content = example(classes=["left", "right", "up"])
    damaged = content.replace(b"\n\x04left", b"\n\x24left")  # one bit of the length
    assert damaged != content
    with pytest.raises(split.ERRORS):
        list(tf.data.Dataset.from_tensors(damaged).map(records.parse))
