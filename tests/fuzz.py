"""Feeds mutated files to what reads them; a process of its own, with little memory.

    python -m tests.fuzz KIND COUNT SEED

Prints how many were read and how many refused.  Any error but the project's own ends
the process, as a crash does.
"""

import collections
import csv
import io
import json
import resource
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tl_tf import startup

MEMORY_BYTES = 6 << 30  # of addresses; TensorFlow alone takes 3
SPECIAL = [b"\0", b"\xff", b"\xfe\xff", b"nan", b"-1", b"1e999", b"9" * 5000, b"../"]
SPECIAL += [b'"', b"[" * 5000, b"{", b",", b";", b"\r", b"\n", b"%", b"@", b"\x1b[2J"]
SPECIAL += [b"'''", b"(" * 500, b"include '", struct.pack("<Q", 1 << 40), b"\x7f" * 9]
CLASSES = ("left", "right", "up")


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flips, cuts, repeats, inserts or removes, once to three times."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        start, stop = sorted(rng.integers(0, len(changed) + 1, 2))
        match rng.integers(0, 7):
            case 0 if changed:
                changed[min(start, len(changed) - 1)] ^= 1 << int(rng.integers(0, 8))
            case 1 if changed:
                changed[min(start, len(changed) - 1)] = rng.integers(0, 256)
            case 2:
                del changed[start:]
            case 3:
                del changed[start : min(stop, start + 40)]
            case 4:
                changed[start:start] = changed[start : min(stop, start + 40)]
            case 5:
                changed[start:start] = rng.bytes(int(rng.integers(1, 12)))
            case _:
                changed[start:start] = SPECIAL[rng.integers(0, len(SPECIAL))]
    return bytes(changed)


def csv_files(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """The lists of the three kinds that have some."""
    from data import charades, csv_list, kinetics, manifest

    rows = "path,start,end,labels\na.mp4,,,up\nb/c.mp4,1.5,9,up;left\n"
    (folder / "test.csv").write_text("path,labels\nz.mp4,up\n")
    (folder / "videos").mkdir()

    def own(content: bytes) -> None:
        (folder / "train.csv").write_bytes(content)
        settings = csv_list.Settings(annotations_dir=folder)
        manifest.check("csv", csv_list.read(settings, ["train"]))

    yield rows.encode(), own
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(charades.COLUMNS)
    writer.writerow(["AAAA1", *["x"] * 8, "c001 0.00 2.50;c000 1.0 9.9", "10.5"])
    writer.writerow(["AAAA2", *["y, z"] * 8, "", "7"])
    (folder / charades.CLASSES_FILE).write_text("c000 a\nc001 b\n")

    def official(content: bytes) -> None:
        (folder / "Charades_v1_train.csv").write_bytes(content)
        settings = charades.Settings(annotations_dir=folder)
        manifest.check("charades", charades.read(settings, ["train"]))

    yield text.getvalue().encode(), official
    lists = folder / "kinetics"
    lists.mkdir()
    rows = "label,youtube_id,time_start,time_end\nup,abcdefghijk,1,11\n"

    def crawled(content: bytes) -> None:
        (lists / "train.csv").write_bytes(content)
        settings = kinetics.Settings(400, lists, folder / "videos")
        manifest.check("kinetics", kinetics.read(settings, ["train"]))

    yield rows.encode(), crawled


def json_files(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """AViD's lists, ReaL's labels, a description and a shard's report."""
    from data import avid, manifest
    from tests import shards
    from tl_tf import records
    from tl_tf.inputs import real_labels

    for name in ("avid_train.json", "avid_val.json"):
        (folder / name).write_text(json.dumps({"abcdefgh.mp4": "up", "b.mp4": "none"}))

    def official(content: bytes) -> None:
        (folder / "avid_val.json").write_bytes(content)
        settings = avid.Settings(annotations_dir=folder, videos_dir=folder)
        manifest.check("avid", avid.read(settings, ["train", "test"]))

    yield (folder / "avid_val.json").read_bytes(), official

    def real(content: bytes) -> None:
        (folder / "real.json").write_bytes(content)
        real_labels.read_table(folder / "real.json", num_classes=1000)

    yield json.dumps([[1, 2], [], [999]]).encode(), real
    made = shards.write_dataset(
        folder, [{"v0": shards.Video(shards.grey_jpegs([1, 2]), [1])}]
    )
    path = made / "dataset_info.json"
    description = path.read_bytes()

    def describe(content: bytes) -> None:
        path.write_bytes(content)
        records.DatasetInfo.load(folder, "toy").reports("train")

    yield description, describe
    report = (made / records.shard_name("toy", "train", 0, 1)).with_suffix(".json")

    def report_on(content: bytes) -> None:
        path.write_bytes(description)
        report.write_bytes(content)
        records.DatasetInfo.load(folder, "toy").reports("train")

    yield report.read_bytes(), report_on


def gin_files(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """A recipe, checked and not run: it is code."""
    from tl_tf import config

    def check(content: bytes) -> None:
        (folder / "x.gin").write_bytes(content)
        config.check([str(folder / "x.gin")], [])

    recipe = (config.ROOT / "gin/quickstart.gin").read_bytes()
    yield recipe, check


def npz_files(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """Arrays stored and compressed."""
    from tl_tf import npz

    arrays = {"a/b": np.arange(60.0).reshape(3, 20), "c": np.array(["x", "yz"])}
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)

        def read(content: bytes) -> None:
            (folder / "x.npz").write_bytes(content)
            npz.read(folder / "x.npz")

        yield file.getvalue(), read

    def read_inner(content: bytes) -> None:
        with zipfile.ZipFile(folder / "x.npz", "w") as archive:
            archive.writestr("a.npy", content)
        npz.read(folder / "x.npz")

    file = io.BytesIO()
    np.save(file, arrays["a/b"])
    yield file.getvalue(), read_inner


def shard_files(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """A shard: its framing, and each record that has the right checksum."""
    from tests import shards
    from tl_tf import integrity, records

    videos = {f"v{i}": shards.Video(shards.grey_jpegs([9, i]), [1]) for i in range(3)}
    made = shards.write_dataset(folder, [videos])
    path = made / records.shard_name("toy", "train", 0, 1)
    info = records.DatasetInfo.load(folder, "toy")

    def read(content: bytes) -> None:
        path.write_bytes(content)
        places, fault = integrity.places(path)
        faults = [
            integrity.fault_at(path, offset, info, decode=integrity.decode_by_pillow)
            for offset, _ in places
        ]
        if fault or any(faults):
            raise ValueError(fault)

    yield path.read_bytes(), read


def record_files(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """The content of a record, whose checksum is right."""
    from tests import shards
    from tl_tf import integrity, records

    video = shards.Video(shards.grey_jpegs([9, 90]), [1])
    info = records.DatasetInfo.load(
        shards.write_dataset(folder, [{"v0": video}]).parent, "toy"
    )

    def read(content: bytes) -> None:
        fault = integrity.fault_of(content, info, decode=integrity.decode_by_pillow)
        if fault:
            raise ValueError(fault)

    yield shards.encode("v0", video), read


def checkpoint_files(folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """The two files of one, its numbers and the index of them."""
    import tensorflow as tf

    from tl_tf import checkpoint

    model = tf.Module()
    model.kernel = tf.Variable(np.ones((30, 40), np.float32))
    model.name_of_it = tf.Variable("text")
    path = tf.train.Checkpoint(model=model).write(str(folder / "ckpt"))
    for name in ("index", "data-00000-of-00001"):
        file = Path(f"{path}.{name}")
        good = file.read_bytes()

        def read(content: bytes, file: Path = file, good: bytes = good) -> None:
            file.write_bytes(content)
            try:
                checkpoint._read_checkpoint(path, {})
            finally:
                file.write_bytes(good)

        yield good, read


def train_on_records(count: int, seed: int, folder: Path) -> collections.Counter:
    """Mutated records in the stream of training, which passes over the bad ones."""
    import tensorflow as tf

    from tests import shards
    from tl_tf import records
    from tl_tf.inputs import video

    rng = np.random.default_rng(seed)
    good = shards.Video(shards.grey_jpegs([9, 90, 200]), [1])
    names = [f"v{i:05d}" for i in range(count)]
    made = shards.write_dataset(folder, [dict.fromkeys(names, good)])
    shards.rewrite(
        made / records.shard_name("toy", "train", 0, 1),
        [mutate(shards.encode(name, good), rng) for name in names],
    )
    clips = video.clip_dataset(
        folder,
        dataset="toy",
        split="train",
        is_training=True,
        batch_size=1,
        num_frames=2,
        crop_px=20,
        short_side_px=24,
        seed=1,
        max_bad_records=1 - 1e-9,
    )
    read = 0
    for batch in clips.batches:
        passed_over = int(batch["passed_over"]["count"][0])
        if read + 1 + passed_over > count:
            break
        tf.debugging.assert_shapes([(batch["pixels"], (1, 2, 20, 20, 3))])
        read += 1
    return collections.Counter(read=read, refused=count - read)


KINDS = {
    "csv": csv_files,
    "json": json_files,
    "gin": gin_files,
    "npz": npz_files,
    "shards": shard_files,
    "records": record_files,
    "checkpoints": checkpoint_files,
}


def run(kind: str, count: int, seed: int, folder: Path) -> collections.Counter:
    """How many of `count` mutated files were read, and how many refused."""
    counts = collections.Counter()
    seeds = list(KINDS[kind](folder))
    rng = np.random.default_rng(seed)
    for number in range(count):
        content, read = seeds[number % len(seeds)]
        changed = mutate(content, rng)
        try:
            read(changed)
            counts["read"] += 1
        except ValueError as error:  # ConfigError is one
            if _raised_by(error) not in ("tl_tf", "data", "tests"):
                raise AssertionError(f"{kind} {number}: {changed[:2000]!r}") from error
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{kind} {number}: {changed[:2000]!r}") from error
    return counts


def _raised_by(error: BaseException) -> str:
    """The package whose own `raise` it was: run.py shows those as a sentence."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    path = Path(trace.tb_frame.f_code.co_filename)
    root = Path(__file__).resolve().parents[1]
    return path.relative_to(root).parts[0] if root in path.parents else "elsewhere"


def main() -> None:
    """Reads the command line."""
    startup.quiet_tensorflow()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    count, seed = map(int, sys.argv[2:4])
    for kind in sys.argv[1].split(","):
        with tempfile.TemporaryDirectory() as folder:
            if kind == "training":
                counts = train_on_records(count, seed, Path(folder))
            else:
                counts = run(kind, count, seed, Path(folder))
        print(json.dumps({"kind": kind, **counts}), flush=True)


if __name__ == "__main__":
    main()
