"""A smoke run of benchmarks/startup.py: ours alone, on tiny images."""

import json

import pytest

from benchmarks import measure, startup


def test_the_clock_stops_at_the_first_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "")  # the libraries' bytecode is there
    startup.main(
        [
            *("--contenders=ours", "--image_px=32", "--batch_size=3", "--rounds=1"),
            f"--json={tmp_path / 'startup.json'}",
        ]
    )
    assert "libraries imported" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "startup.json").read_text())["seconds"]) == 1


def test_a_failure_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "")
    launch = startup.launcher("ours", tmp_path, 32, 3)  # there are no images
    with pytest.raises(RuntimeError, match="no such data set|no folder|jpegs"):
        launch()


def test_a_missing_rival_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(startup.RIVALS, "timm", ("no_such_package", "start_timm", []))
    with pytest.raises(ImportError, match="there is no module no_such_package"):
        startup.command("timm", tmp_path, image_px=32, batch_size=3)


def test_the_report_compares(tmp_path):
    results = {
        startup.BASE: measure.Result([2.0, 2.0], 0, 0),
        "ours": measure.Result([3.0, 3.0], 0, 0),
        "timm": measure.Result([6.0, 6.0], 0, 0),
    }
    table = startup.report(results, {"imports": 1.0, "a step": 3.0})
    rows = {line.split("  ")[0]: line for line in table.splitlines()}
    assert "3 (3 to 3)" in rows["timm"] and "2 (2 to 2)" in rows["timm"]
    assert "75.0%" in rows["a step"]
