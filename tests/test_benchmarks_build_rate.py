"""A smoke run of benchmarks/build_rate.py on a few short videos."""

import json

import pytest

from benchmarks import build_rate, measure
from data import frames


@pytest.fixture
def videos(tmp_path, monkeypatch):
    monkeypatch.setattr(build_rate, "NUM_MADE", 2)
    monkeypatch.setattr(build_rate, "NUM_COPIES", 2)
    build_rate.make_videos(tmp_path / "videos", seconds=0.7)
    return tmp_path / "videos"


def test_ours_builds_them(videos, tmp_path):
    build_rate.main(
        [f"--videos_dir={videos}", "--rounds=1", f"--json={tmp_path / 'rate.json'}"]
    )
    written = json.loads((tmp_path / "rate.json").read_text())
    assert written["videos"] == 4
    assert "ours" in written["seconds"]


@pytest.mark.parametrize("has_rgb", [False, True])
def test_the_limit_makes_as_many_frames(videos, has_rgb):
    pytest.importorskip("simplejpeg")
    path = build_rate.videos_in(videos)[0]
    video = frames.extract(path, fps=12, short_side=256, max_seconds=9)
    assert build_rate.encode_video(path, has_rgb=has_rgb) == len(video.frames)


def test_the_report_compares():
    results = {
        "ours": measure.Result([2.0, 2.0], 0, 0),
        "limit": measure.Result([1.0, 1.0], 0, 0),
    }
    table = build_rate.report(results, 5)
    assert "0.5 (0.5 to 0.5)" in table.splitlines()[2]
    assert "300" in table.splitlines()[2]
