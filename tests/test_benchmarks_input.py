"""benchmarks/input.py runs on a few small videos; nothing is said of speeds."""

import functools
import json
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import input as benchmark
from benchmarks import measure, pipelines
from tests import shards

HEIGHT, WIDTH = 48, 66
ROWS = [{"field": "batch_size", "value": v, "ours": 0.8} for v in (1, 2)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    pipelines.make_videos(folder, count=3, seconds=1, height=HEIGHT, width=WIDTH)
    pipelines.make_images(folder, count=7, height=37, width=53)
    return folder


def task(data_dir, **changes) -> pipelines.Task:
    arguments = {"num_frames": 5, "crop_px": 38, "short_side_px": 44, "count": 2}
    videos = str(data_dir / "raw")
    arguments |= {"batch_size": 2, "videos_dir": videos, **changes}
    return pipelines.Task(str(data_dir), **arguments)


def run(contender: measure.Contender):
    """One call in this process; skipped where a rival is not installed."""
    try:
        return contender.build(*contender.arguments)()
    except ImportError as error:
        pytest.skip(str(error))


CHANGES = {
    "training": {},
    "evaluation": {"num_clips": 2, "num_crops": 3, "count": 6, "batch_size": 1},
    "images": {"count": 4},
}
CASES = [
    pytest.param(
        part,
        contender.name,
        marks=[pytest.mark.slow] * ("(" in contender.name),  # rivals, by what they do
    )
    for part in CHANGES
    for contender in benchmark.contenders(part, pipelines.Task("", videos_dir="there"))
]


@pytest.mark.parametrize("part, name", CASES)
def test_every_contender_runs(data_dir, monkeypatch, part, name):
    monkeypatch.setattr(pipelines, "DRAIN_SECONDS", 0.0)
    found = benchmark.contenders(part, task(data_dir, **CHANGES[part]))
    told = run(next(c for c in found if c.name == name))
    assert told is None or isinstance(told, measure.Seconds)


def test_the_limit_decodes_what_the_pipeline_decodes():
    try:
        decode = pipelines._load_decoder()
    except ImportError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(2)
    pictures = [pipelines._texture(rng, HEIGHT, WIDTH) for _ in range(3)]
    files = [shards.jpeg(picture) for picture in pictures]
    window = (5, 9, 31, 40)
    got = np.empty([3, 31, 40, 3], np.uint8)
    decode(files, window, got)
    want = [tf.image.decode_and_crop_jpeg(file, window, channels=3) for file in files]
    assert np.abs(got.astype(int) - np.stack(want)).max() <= 2


def test_the_command_prints_tables_and_writes_all(data_dir, monkeypatch, capsys):
    def contenders(part, task):
        names = (benchmark.LIMIT, benchmark.OURS)
        return [measure.Contender(n, functools.partial, (abs, 1)) for n in names]

    monkeypatch.setattr(benchmark, "contenders", contenders)
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "memory_curve", lambda task, clips: [(1, 2.0)])
    monkeypatch.setattr(benchmark, "SWEEPS", {"batch_size": (1, 2)})
    path = data_dir / "found.json"
    flags = [f"--work_dir={data_dir}", f"--json={path}", f"--images_dir={data_dir}"]
    monkeypatch.setattr(benchmark, "sweep", lambda task, field, rounds: ROWS)
    monkeypatch.setattr(sys, "argv", ["input", *flags, "--rounds=1"])
    benchmark.main()
    printed = capsys.readouterr().out
    for part in ("training", "evaluation", "images"):
        assert f"\n{part}: " in printed
    found = json.loads(path.read_text())
    assert len(found["tables"]) == 6 and found["tables"][1]["pipeline"] == "ours"
    assert found["sweep"] == ROWS and found["memory"] == [[1, 2.0]]
    for name in ("memory", "batch_size"):
        assert (data_dir / f"input_{name}.png").stat().st_size < 60_000


def test_resident_memory_is_read_on_the_way(data_dir):
    curve = pipelines.resident_megabytes(task(data_dir), clips=8, points=4)
    assert [done for done, _ in curve] == [2, 4, 6, 8]
    assert all(megabytes > 1 for _, megabytes in curve)
