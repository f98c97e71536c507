import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from data import verify
from tests import shards
from tl_tf import records

NUM_VIDEOS = (4, 3, 2, 3)  # in each shard


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A set of two splits; every video has its own frames."""
    data_dir = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(3)
    size = (shards.HEIGHT, shards.WIDTH, 3)
    made = [
        {
            f"v{shard}{i}": shards.Video(
                [shards.jpeg(rng.integers(0, 255, size, np.uint8)) for _ in range(3)],
                labels=[i % 3],
            )
            for i in range(count)
        }
        for shard, count in enumerate(NUM_VIDEOS)
    ]
    shards.write_dataset(data_dir, made[:3])
    return shards.write_dataset(data_dir, made[3:], split="test")


def shard_of(folder: Path, number: int) -> Path:
    return folder / records.shard_name("toy", "train", number, 3)


def flip_a_pixel_byte(folder: Path) -> None:
    path = shard_of(folder, 0)
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 8] ^= 255  # the middle of the second of four records
    path.write_bytes(content)


def flip_a_header(folder: Path) -> None:
    path = shard_of(folder, 0)
    content = bytearray(path.read_bytes())
    content[2] ^= 255
    path.write_bytes(content)


def cut(folder: Path) -> None:
    path = shard_of(folder, 1)
    path.write_bytes(path.read_bytes()[:-20])


def delete(folder: Path) -> None:
    shard_of(folder, 2).unlink()


def swap(folder: Path) -> None:
    first, second = shard_of(folder, 0), shard_of(folder, 1)
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def break_a_frame(folder: Path) -> None:
    """One that has its ends and its header, and whose checksum is right."""
    path = shard_of(folder, 1)
    videos = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    example = tf.train.SequenceExample.FromString(videos[2])
    frame = example.feature_lists.feature_list[records.FRAMES].feature[1].bytes_list
    at = frame.value[0].index(b"\xff\xc4") + 5  # how many Huffman codes of each length
    frame.value[0] = frame.value[0][:at] + b"\xff" * 16 + frame.value[0][at + 16 :]
    videos[2] = example.SerializeToString()
    shards.rewrite(path, videos)


def lose_the_report(folder: Path) -> None:
    shard_of(folder, 2).with_suffix(".json").write_text("{}")


def add_a_shard(folder: Path) -> None:
    shutil.copy(shard_of(folder, 2), folder / "toy-train-00007-of-00008.tfrecord")


def repeat_a_video(folder: Path) -> None:
    """That of the test becomes one of training: a leak."""
    name = records.shard_name("toy", "test", 0, 1)
    shutil.copy(shard_of(folder, 1), folder / name)
    report = shard_of(folder, 1).with_suffix(".json")
    shutil.copy(report, (folder / name).with_suffix(".json"))
    shards.rewrite(folder / name)


def change_bytes_that_fit(folder: Path) -> None:
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"]["train"]["shards"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(info))


DAMAGES = {
    flip_a_pixel_byte: ["00000-of-00003.tfrecord: record 1: wanted bytes that match"],
    flip_a_header: [
        "00000-of-00003.tfrecord: record 0: wanted bytes that match their checksum, got"
        " damaged ones; 4 of 4 records cannot be read. Delete"
    ],
    cut: [
        "00001-of-00003.tfrecord: wanted ",
        "record 2: wanted a whole record of ",
    ],
    delete: ["00002-of-00003.tfrecord: the shard is missing"],
    swap: ["00000-of-00003.tfrecord: wanted ", "all 3 records are other videos than"],
    break_a_frame: [
        "record 2: wanted whole JPEG frames, got a damaged one (frame 1 of"
    ],
    lose_the_report: ["00002-of-00003.json: wanted id, row and frames of every video"],
    add_a_shard: ["00007-of-00008.tfrecord: dataset_info.json does not list it."],
    repeat_a_video: ["wanted each video once in all splits, got v10 2 times"],
    change_bytes_that_fit: ["00001-of-00003.tfrecord: wanted the SHA-256 that dataset"],
}


def test_a_whole_set_passes(whole, tmp_path, capsys):
    path = tmp_path / "found.json"
    before = sorted(whole.iterdir())
    assert verify.main([str(whole), "--num_workers=2", f"--json={path}"]) == 0
    printed = capsys.readouterr()
    assert "train: 9 videos with 27 frames read in 3 shards; 0 bad" in printed.out
    assert "test: 3 videos with 9 frames read in 1 shards; 0 bad" in printed.out
    assert printed.out.endswith(f"{whole}: whole\n")
    assert "videos read 12/12" in printed.err and "left" in printed.err
    assert json.loads(path.read_text())["is_whole"]
    assert sorted(whole.iterdir()) == before


def test_each_fault_of_several_is_named(whole, tmp_path, capsys):
    together = tmp_path / "together" / "toy"
    shutil.copytree(whole, together)
    for damage in (flip_a_pixel_byte, break_a_frame, delete):
        damage(together)
    assert verify.main([str(together), "--num_workers=2"]) == 1
    printed = capsys.readouterr().out
    for damage in (flip_a_pixel_byte, break_a_frame, delete):
        for wanted in DAMAGES[damage]:
            assert wanted in printed
    assert "train: 7 videos" in printed and "4 bad, 3 faults" in printed
    assert "test: 3 videos with 9 frames read in 1 shards; 0 bad, 0 faults" in printed


@pytest.mark.parametrize(
    "damage", [d for d in DAMAGES if d not in (break_a_frame, flip_a_pixel_byte)]
)
def test_a_fault_is_named(whole, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(verify.isolated, "Workers", InThisProcess)
    shutil.copytree(whole, tmp_path / "toy")
    damage(tmp_path / "toy")
    found = verify.verify(tmp_path / "toy", num_workers=1)
    faults = found["faults"] + found["splits"]["train"]["faults"]
    assert not found["is_whole"]
    for wanted in DAMAGES[damage]:
        assert any(wanted in fault["fault"] for fault in faults), faults


class InThisProcess:
    """Saves the seconds in which a process imports TensorFlow."""

    def __init__(self, count, timeout_seconds):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        pass

    def submit(self, function, *args, **kwargs):
        call = verify.futures.Future()
        call.set_result(function(*args, **kwargs))
        return call


def test_where_nothing_can_be_read_the_status_is_2(tmp_path, capsys):
    assert verify.main([str(tmp_path / "none")]) == 2
    assert "dataset_info.json: no such file. Build it" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        verify.main([str(tmp_path), "--num_workers=0"])
