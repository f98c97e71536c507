import struct

import numpy as np
import pytest
import tensorflow as tf

from tests import shards
from tl_tf import integrity, records
from tl_tf.inputs import split, video

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


def changed(key: str, **value) -> bytes:
    """One value of the record's context becomes another."""
    example = tf.train.SequenceExample.FromString(shards.encode("bad", GOOD))
    ((kind, number),) = value.items()
    getattr(example.context.feature[key], kind).value[:] = [number]
    return example.SerializeToString()


def resized(jpeg: bytes, height: int, width: int) -> bytes:
    """A JPEG file whose header claims another size (ITU T.81, B.2.2)."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


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
    "other rate": (
        changed(records.FPS, float_list=9.0),
        "wanted 4 frames per second, got 9",
    ),
    "label beyond": (changed(records.LABELS, int64_list=3), "wanted labels in 0..2"),
    "label below": (changed(records.LABELS, int64_list=-1), "wanted labels in 0..2"),
    "other classes": (
        shards.encode("bad", GOOD, classes=("left", "up", "right")),
        "wanted the class list of dataset_info.json",
    ),
    "huge frames": (
        changed(records.WIDTH, int64_list=65535),
        "wanted frames of ",
    ),
    "JPEG bomb": (
        bad_jpegs(lambda f: resized(f, 65500, 65500)),
        "wanted frames of one size, as the record states it, got another",
    ),
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
        "wanted whole JPEG frames, got a damaged one",
    ),
    "no header": (
        bad_jpegs(lambda f: f[:2] + f[-2:]),
        "wanted whole JPEG frames, got a damaged one (frame 0 of 3)",
    ),
    "other size": (smaller_frames(), "wanted frames of one size"),
    "not an example": (b"\x0a\xff\xff", "wanted a tf.train.SequenceExample"),
}


def write_with_fault(data_dir, serialized: bytes, *, record: int, shard: int = 1):
    """Two shards of three good videos; one record becomes "bad"."""
    ids = [[f"v{number}{i}" for i in range(3)] for number in range(2)]
    ids[shard][record] = "bad"
    folder = shards.write_dataset(data_dir, [dict.fromkeys(i, GOOD) for i in ids])
    path = folder / records.shard_name("toy", "train", shard, 2)
    videos = [shards.encode(name, GOOD) for name in ids[shard]]
    videos[record] = serialized
    shards.rewrite(path, videos)
    return path


def flip(path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 255
    path.write_bytes(content)


def open_split(data_dir, *, is_training: bool = True, **changes):
    arguments = {**ARGUMENTS, **changes}
    return video.clip_dataset(data_dir, **arguments, is_training=is_training)


def explanation(data_dir, *, is_training: bool) -> str:
    clips = open_split(data_dir, is_training=is_training)
    with pytest.raises(split.ERRORS) as caught:
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
    assert got.startswith(f"{path}: record 2: {wanted.split(' (frame')[0]}")
    assert got.endswith("and run the data.build command again.")


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_first_record_is_refused_at_once(tmp_path, name):
    serialized, wanted = FAULTS[name]
    path = write_with_fault(tmp_path, serialized, record=0, shard=0)
    with pytest.raises(ValueError) as caught:
        open_split(tmp_path)
    assert str(caught.value).startswith(f"{path}: record 0: {wanted}")


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path) -> None:
    path.write_bytes(b"")


def swap(path) -> None:
    """With the other shard, by their names alone."""
    other = path.with_name(path.name.replace("00001-of", "00000-of"))
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def swap_reports(path) -> None:
    swap(path.with_suffix(".json"))


def lose_a_record(path) -> None:
    shards.rewrite(path, [shards.encode("v10", GOOD), shards.encode("v11", GOOD)])


def claim(length: int):
    """A record whose header, with the right checksum, claims so many bytes."""

    def change(path) -> None:
        header = struct.pack("<Q", length)
        checksum = struct.pack("<I", integrity._masked_crc32c(header))
        path.write_bytes(header + checksum + path.read_bytes()[12:])

    return change


SHARD_FAULTS = {
    "deleted": (lambda path: path.unlink(), ": the shard is missing"),
    "no report": (lambda path: path.with_suffix(".json").unlink(), "not the report of"),
    "emptied": (empty, r"wanted \d+,\d+ bytes as dataset_info.json says, got 0"),
    "cut": (cut, r"wanted \d+,\d+ bytes as dataset_info.json says, got \d+,\d+"),
    "swapped": (
        lambda path: (swap(path), shards.rewrite(path)),
        "record 0: wanted video v00 as the shard's report says, got 'v10'",
    ),
    "header": (
        lambda path: flip(path, 3),
        "record 0: wanted bytes that match their checksum",
    ),
    "record lost": (lose_a_record, "record 2: wanted 3 records in the shard, got 2"),
    "a GB claimed": (claim(1 << 30), "record 0: wanted a whole record of 1,073,741,8"),
    "2^40 claimed": (claim(1 << 40), "record 0: wanted at most 2,147,483,648 bytes, g"),
    "2^63 claimed": (claim(1 << 63), "record 0: wanted at most 2,147,483,648 bytes, g"),
}


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("name", SHARD_FAULTS)
def test_a_shard_that_is_not_as_listed_is_refused_at_once(tmp_path, name, is_training):
    change, wanted = SHARD_FAULTS[name]
    path = write_with_fault(tmp_path, shards.encode("bad", GOOD), record=2)
    change(path)
    if path.exists() and name not in ("emptied", "cut"):
        shards.rewrite(path)  # the description agrees
    with pytest.raises(ValueError, match=wanted):
        open_split(tmp_path, is_training=is_training)


@pytest.mark.parametrize("change", [swap, swap_reports])
def test_swapped_shards_of_one_size_are_found_by_their_ids(tmp_path, change):
    path = write_with_fault(tmp_path, shards.encode("bad", GOOD), record=2)
    other = path.with_name(path.name.replace("00001-of", "00000-of"))
    videos = {name: GOOD for name in ("v10", "v11", "v12")}
    shards.write_dataset(tmp_path, [{f"v0{i}": GOOD for i in range(3)}, videos])
    assert path.stat().st_size == other.stat().st_size
    change(path)
    for is_training in (True, False):
        with pytest.raises(
            ValueError, match="record 0: wanted video v.0 as the shard's"
        ):
            open_split(tmp_path, is_training=is_training)


def test_another_video_in_the_place_of_one_is_named(tmp_path):
    path = write_with_fault(tmp_path, shards.encode("bad", GOOD), record=2)
    videos = [shards.encode(name, GOOD) for name in ("v10", "v00", "bad")]
    shards.rewrite(path, videos)
    got = explanation(tmp_path, is_training=False)
    assert got.startswith(f"{path}: record 1: wanted video v11 as the shard's report")


def test_damaged_bytes_are_found_by_their_checksum(tmp_path):
    path = write_with_fault(tmp_path, shards.encode("bad", GOOD), record=1)
    flip(path, path.stat().st_size // 2)  # the middle of the second of three records
    got = explanation(tmp_path, is_training=True)
    assert got.startswith(f"{path}: record 1: wanted bytes that match their checksum")


def test_an_empty_split_is_refused_at_once(tmp_path):
    shards.write_dataset(tmp_path, [{}, {}])
    with pytest.raises(ValueError, match="split 'train' has no video"):
        open_split(tmp_path)


def test_an_error_with_no_bad_record_keeps_its_message(tmp_path):
    shards.write_dataset(tmp_path, [{"v": GOOD}])
    clips = open_split(tmp_path)
    error = tf.errors.ResourceExhaustedError(None, None, "out of memory")
    assert clips.explain(error).endswith("split 'train' is damaged. out of memory")


BAD = ("other version", "no header", "JPEG bomb", "not an example")


def write_with_several(data_dir):
    """Two shards; 4 of 15 records are bad, one of them only where it is decoded."""
    ids = [[f"v{number}{i:x}" for i in range(n)] for number, n in enumerate((5, 10))]
    folder = shards.write_dataset(data_dir, [dict.fromkeys(i, GOOD) for i in ids])
    for shard, bad in ((0, {1: BAD[0]}), (1, {0: BAD[1], 8: BAD[2], 9: BAD[3]})):
        videos = [shards.encode(name, GOOD) for name in ids[shard]]
        for record, name in bad.items():
            videos[record] = FAULTS[name][0].replace(
                b"bad", ids[shard][record].encode()
            )
        shards.rewrite(folder / records.shard_name("toy", "train", shard, 2), videos)
    return folder


def passed_over(clips, num_batches: int) -> tuple[list[int], set[tuple[int, int]]]:
    counts, places = [], set()
    for batch in clips.batches.take(num_batches):
        counts.append(int(batch["passed_over"]["count"][-1]))
        places |= {tuple(p) for p in batch["passed_over"]["places"][-1].numpy()}
    return counts, places - {(-1, -1)}


def test_training_passes_over_a_share_of_bad_records(tmp_path):
    write_with_several(tmp_path)
    clips = open_split(tmp_path, max_bad_records=4 / 15)
    counts, places = passed_over(clips, 22)  # two epochs of 11 good ones
    assert places == {(0, 1), (1, 0), (1, 8), (1, 9)}
    assert counts == sorted(counts) and 4 <= counts[11] and counts[-1] in (7, 8)
    for place in places:
        name = {(0, 1): BAD[0], (1, 0): BAD[1], (1, 8): BAD[2], (1, 9): BAD[3]}[place]
        got = clips.describe_bad(*place)
        assert f"of-00002.tfrecord: record {place[1]}: {FAULTS[name][1]}" in got


def test_more_than_the_share_is_an_error_and_no_hang(tmp_path):
    write_with_several(tmp_path)
    clips = open_split(tmp_path, max_bad_records=3 / 15)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        passed_over(clips, 22)
    got = clips.explain(caught.value)
    assert "one of 4 bad records in an epoch of 15, max_bad_records=0.2 allows" in got
    # Not even where there is nothing else.
    shards.write_dataset(tmp_path, [{"bad": GOOD}])
    path = tmp_path / "toy" / records.shard_name("toy", "train", 0, 1)
    shards.rewrite(path, [FAULTS["no header"][0]])
    clips = open_split(tmp_path, max_bad_records=0.99)
    with pytest.raises(tf.errors.InvalidArgumentError, match="one of 1 bad records"):
        passed_over(clips, 1)


def test_a_damaged_checksum_takes_the_rest_of_its_shard(tmp_path):
    path = write_with_fault(tmp_path, shards.encode("bad", GOOD), record=1)
    flip(path, path.stat().st_size // 2)
    clips = open_split(tmp_path, max_bad_records=0.5)
    counts, places = passed_over(clips, 12)
    assert places == {(1, 1), (1, 2)} and counts[-1] in (4, 5, 6)
    assert "record 1: wanted bytes that match" in clips.describe_bad(1, 1)
    assert "not read, as record 1 before it is damaged" in clips.describe_bad(1, 2)


def test_a_restored_iterator_still_knows_what_it_passed_over(tmp_path):
    write_with_several(tmp_path / "data")
    iterator, restored = (
        iter(open_split(tmp_path / "data", max_bad_records=0.5).batches)
        for _ in range(2)
    )
    for _ in range(7):
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).save(tmp_path / "ckpt")
    tf.train.Checkpoint(iterator=restored).restore(path)
    for _ in range(20):
        wanted, got = next(iterator), next(restored)
        tf.nest.map_structure(np.testing.assert_array_equal, wanted, got)


def test_passing_over_nothing_changes_nothing(tmp_path):
    ids = [[f"v{number}{i}" for i in range(5)] for number in range(3)]
    shards.write_dataset(tmp_path, [dict.fromkeys(i, GOOD) for i in ids])
    plain = open_split(tmp_path).batches.take(40)
    tolerant = open_split(tmp_path, max_bad_records=0.5).batches.take(40)
    for wanted, got in zip(plain, tolerant, strict=True):
        assert got.pop("passed_over")["count"] == 0
        tf.nest.map_structure(np.testing.assert_array_equal, wanted, got)


def test_only_training_may_pass_over(tmp_path):
    shards.write_dataset(tmp_path, [{"v": GOOD}])
    with pytest.raises(
        ValueError, match="eval/clip_dataset: max_bad_records must be 0"
    ):
        open_split(tmp_path, is_training=False, max_bad_records=0.1)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"max_bad_records must be in 0\.\.1, got"):
            open_split(tmp_path, max_bad_records=share)
