"""Checkpoints that are damaged, cut short, or saved on a full disk."""

import contextlib
import os
import resource
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests import test_checkpoint
from tl_tf import checkpoint, durable

STEPS = (1, 2)  # both stay


@pytest.fixture
def run(tmp_path):
    """A folder with two checkpoints, and the state at the first one."""
    loop, manager = test_checkpoint.make(tmp_path)
    for step in STEPS:
        loop.train(tf.constant(1))
        manager.save(checkpoint_number=step)
        if step == STEPS[0]:
            first = test_checkpoint.state(loop)
    return tmp_path, first


def restored(folder) -> tuple[str, list[np.ndarray]]:
    loop, manager = test_checkpoint.make(folder)
    return manager.restore_or_initialize(), test_checkpoint.state(loop)


def flip(path, *, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DATA = "ckpt-2.data-00000-of-00001"
DAMAGES = {
    "a bit of the data": (
        lambda folder: flip(folder / DATA, at=-9),
        f"{DATA} does not match its checksum",
    ),
    "a bit of the index": (
        lambda folder: flip(folder / "ckpt-2.index", at=20),
        "ckpt-2.index does not match its checksum",
    ),
    "half of the data": (
        lambda folder: os.truncate(folder / DATA, 100),
        f"{DATA} does not match its checksum",
    ),
    "no data": (lambda folder: (folder / DATA).unlink(), f"{DATA} is missing"),
    "no index": (
        lambda folder: (folder / "ckpt-2.index").unlink(),
        "ckpt-2.index is missing",
    ),
    "an empty seal": (
        lambda folder: os.truncate(folder / "ckpt-2.sha256", 0),
        "ckpt-2.sha256 is damaged",
    ),
    "half a seal": (
        lambda folder: os.truncate(folder / "ckpt-2.sha256", 90),
        "ckpt-2.sha256 is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_named_and_the_one_before_is_used(damage, run, capfd):
    folder, first = run
    harm, what = DAMAGES[damage]
    harm(folder)
    path, state = restored(folder)
    assert path == str(folder / "ckpt-1")
    for got, wanted in zip(state, first, strict=True):
        np.testing.assert_array_equal(got, wanted)
    line = f"{folder}/ckpt-2: damaged: {what}. ckpt-1 is used instead.\n"
    assert capfd.readouterr().err == line
    fresh, _ = test_checkpoint.make(folder / "other")
    assert test_checkpoint.restore(folder, fresh).name == "ckpt-1"  # for evaluation


def test_without_a_whole_one_nothing_is_restored(run):
    folder, _ = run
    for step in STEPS:
        flip(folder / f"ckpt-{step}.data-00000-of-00001", at=5)
    with pytest.raises(ValueError, match=r"can be read \(ckpt-2: .*; ckpt-1: .*\)"):
        restored(folder)


def test_a_checkpoint_without_a_seal_has_tensorflows_checksums(run, capfd):
    folder, _ = run
    for step in STEPS:
        (folder / f"ckpt-{step}.sha256").unlink()
    assert restored(folder)[0].endswith("ckpt-2")
    assert "ckpt-2: has no .sha256 beside it" in capfd.readouterr().err
    reader = tf.train.load_checkpoint(str(folder / "ckpt-2"))
    kernel = reader.get_tensor("model/kernel/.ATTRIBUTES/VARIABLE_VALUE").tobytes()
    flip(folder / DATA, at=(folder / DATA).read_bytes().index(kernel))
    assert restored(folder)[0].endswith("ckpt-1")
    assert "ckpt-2: damaged: " in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\0" * 80, b"\xff\xfe garbage"])
def test_a_damaged_state_file_loses_nothing(content, run):
    folder, _ = run
    (folder / "checkpoint").write_bytes(content)
    assert restored(folder)[0] == str(folder / "ckpt-2")


def test_a_save_that_was_cut_short_is_not_seen(run):
    folder, _ = run
    for name in (DATA, "ckpt-2.index"):  # renamed by TensorFlow, not yet sealed
        (folder / name.replace("2", "3", 1)).write_bytes((folder / name).read_bytes())
    (folder / "ckpt-4_temp").mkdir()
    (folder / "ckpt-4_temp" / "part-00000-of-00001").write_bytes(b"half")
    (folder / ".ckpt-4.sha256.tmp").write_bytes(b"half")
    assert restored(folder)[0] == str(folder / "ckpt-2")
    assert not list(folder.glob("ckpt-4*")) + list(folder.glob(".ckpt*"))


def test_sha256sum_reads_a_seal_and_old_ones_go(run):
    folder, _ = run
    loop, manager = test_checkpoint.make(folder)
    manager.restore_or_initialize()
    loop.train(tf.constant(1))
    manager.save(checkpoint_number=3)
    seals = sorted(path.name for path in folder.glob("*.sha256"))
    assert seals == ["ckpt-2.sha256", "ckpt-3.sha256"]
    subprocess.run(["sha256sum", "-c", *seals], cwd=folder, check=True)


def test_what_was_restored_is_not_saved_again(run):
    folder, _ = run
    _, manager = test_checkpoint.make(folder)
    manager.restore_or_initialize()
    assert manager.save(checkpoint_number=2, check_interval=False) is None


@contextlib.contextmanager
def small_disk(folder, limit: int):
    """No file may grow beyond `limit` bytes: writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 100, 400])
def test_a_full_disk_loses_nothing(limit, run):
    folder, _ = run
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    loop, manager = test_checkpoint.make(folder)
    manager.restore_or_initialize()
    loop.train(tf.constant(1))
    text = r"ckpt-3: the checkpoint cannot be saved \(.*\)\. ckpt-2 is as it was: free"
    with small_disk(folder, limit), pytest.raises(ValueError, match=text):
        manager.save(checkpoint_number=3)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert restored(folder)[0] == str(folder / "ckpt-2")


def test_other_folders_have_no_checkpoints(tmp_path):
    assert durable.newest(tmp_path / "missing") is None
    with pytest.raises(ValueError, match="there is no checkpoint to evaluate"):
        checkpoint.read_classes(tmp_path)
