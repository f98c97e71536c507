import json

import numpy as np
import pytest
import tensorflow as tf

from tests import shards
from tl_tf import records
from tl_tf.inputs import video

ARGUMENTS = {
    "dataset": "toy",
    "split": "train",
    "batch_size": 1,
    "num_frames": 2,
    "crop_px": 20,
    "short_side_px": 24,
    "seed": 7,
}
GOOD = shards.Video(shards.grey_jpegs([10, 20, 30]), labels=[1])


def bad_jpegs(damage) -> bytes:
    return shards.encode("bad", shards.Video([damage(f) for f in GOOD.frames]))


def other_version(version: int | None) -> bytes:
    example = tf.train.SequenceExample.FromString(shards.encode("bad", GOOD))
    del example.context.feature[records.VERSION].int64_list.value[:]
    if version is None:
        del example.context.feature[records.VERSION]
    else:
        example.context.feature[records.VERSION].int64_list.value.append(version)
    return example.SerializeToString()


def no_frames() -> bytes:
    example = tf.train.SequenceExample.FromString(shards.encode("bad", GOOD))
    del example.feature_lists.feature_list[records.FRAMES].feature[:]
    return example.SerializeToString()


def smaller_frames() -> bytes:
    small = shards.jpeg(np.zeros((22, 26, 3), np.uint8))
    return shards.encode("bad", shards.Video([GOOD.frames[0], small, small]))


FAULTS = {
    "other version": (other_version(7), "wanted schema version 1, got 7"),
    "no version": (other_version(None), "wanted schema version 1, got 0"),
    "no frames": (no_frames(), "wanted at least 1 frame, got 0"),
    "truncated": (
        bad_jpegs(lambda f: f[: len(f) // 2]),
        "wanted whole JPEG frames, got a damaged one",
    ),
    "empty frame": (
        bad_jpegs(lambda f: b""),
        "wanted whole JPEG frames, got a damaged one",
    ),
    "not a JPEG": (
        bad_jpegs(lambda f: b"GIF89a" + f[6:]),
        "wanted whole JPEG frames, got a damaged one (frame 0)",
    ),
    "other size": (smaller_frames(), "wanted frames of one size"),
    "not an example": (b"\x0a\xff\xff", "wanted a tf.train.SequenceExample"),
}


def write_with_fault(data_dir, serialized: bytes, *, record: int):
    """Two shards of three good videos; one record of the second is replaced."""
    good = {f"v{i}": GOOD for i in range(3)}
    folder = shards.write_dataset(data_dir, [good, good])
    path = folder / records.shard_name("toy", "train", 1, 2)
    videos = [shards.encode(name, GOOD) for name in good]
    videos[record] = serialized
    shards.write_records(path, videos)
    return path


def explanation(data_dir, *, is_training: bool) -> str:
    clips = video.clip_dataset(data_dir, **ARGUMENTS, is_training=is_training)
    with pytest.raises(tf.errors.OpError) as caught:
        for _ in clips.batches.take(20):
            pass
    return clips.explain(caught.value)


@pytest.mark.parametrize(
    "name, is_training",
    [*((name, True) for name in FAULTS), ("no version", False), ("truncated", False)],
)
def test_a_bad_record_stops_the_stream_and_is_named(tmp_path, name, is_training):
    serialized, wanted = FAULTS[name]
    path = write_with_fault(tmp_path, serialized, record=2)
    got = explanation(tmp_path, is_training=is_training)
    assert got.startswith(f"{path}: record 2: {wanted}")
    assert got.endswith("and run the data.build command again.")


def test_a_bad_first_record_is_refused_at_once(tmp_path):
    for serialized, wanted in FAULTS.values():
        path = write_with_fault(tmp_path, serialized, record=0)
        path.rename(path.with_name(records.shard_name("toy", "train", 0, 2)))
        path.touch()
        with pytest.raises(ValueError) as caught:
            video.clip_dataset(tmp_path, **ARGUMENTS, is_training=True)
        assert f"00000-of-00002.tfrecord: record 0: {wanted}" in str(caught.value)


def test_damaged_bytes_are_found_by_their_checksum(tmp_path):
    path = write_with_fault(tmp_path, shards.encode("v1", GOOD), record=1)
    written = bytearray(path.read_bytes())
    written[len(written) // 2] ^= 255  # the middle of the second of three records
    path.write_bytes(written)
    got = explanation(tmp_path, is_training=True)
    assert got.startswith(f"{path}: record 1: wanted bytes that match their checksum")


def test_a_shard_cut_short_is_named(tmp_path):
    path = write_with_fault(tmp_path, shards.encode("v2", GOOD), record=2)
    path.write_bytes(path.read_bytes()[:-9])
    got = explanation(tmp_path, is_training=True)
    assert got.startswith(f"{path}: record 2: wanted bytes that match their checksum")


@pytest.mark.parametrize("is_training", [True, False])
def test_a_shard_that_lost_a_record_is_named(tmp_path, is_training):
    path = write_with_fault(tmp_path, shards.encode("v2", GOOD), record=2)
    shards.write_records(path, [shards.encode("v0", GOOD)] * 2)
    got = explanation(tmp_path, is_training=is_training)
    assert got.startswith(f"{path}: record 2: wanted 3 records in the shard, got 2.")


def test_another_class_list_is_refused_at_once(tmp_path):
    folder = shards.write_dataset(tmp_path, [{"v": GOOD}])
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "classes": ["right", "left", "up"]}))
    with pytest.raises(ValueError, match="wanted the class list of dataset_info.json"):
        video.clip_dataset(tmp_path, **ARGUMENTS, is_training=True)


def test_an_error_with_no_bad_record_keeps_its_message(tmp_path):
    shards.write_dataset(tmp_path, [{"v": GOOD}])
    clips = video.clip_dataset(tmp_path, **ARGUMENTS, is_training=True)
    error = tf.errors.ResourceExhaustedError(None, None, "out of memory")
    assert clips.explain(error).endswith("split 'train' is damaged. out of memory")
