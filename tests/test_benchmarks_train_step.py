import json
import re

import pytest

from benchmarks import measure, train_step


def run(capsys, *flags: str) -> list[str]:
    """The lines of a report over one round."""
    train_step.main([*flags, "--rounds=1"])
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch):
    monkeypatch.setattr(measure, "ROUND_SECONDS", 1e-3)


def test_a_smoke_run_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "step.json"
    small = ["--models=tiny", "--what=step", "--rivals=keras_graph", "--by=graph"]
    lines = run(capsys, *small, f"--json={path}")
    assert lines[0].split() == ["model", "what", "dtype", "rival", "graph", "MB"]
    rows = [line for line in lines if re.match("tiny +step +float32", line)]
    assert re.search(r"ours, graph +1 \(1 to 1\)", rows[0])
    assert re.search(r"keras_graph +[0-9.]+ \(", rows[1])
    (results,) = json.loads(path.read_text()).values()
    assert len(results["ours, graph"]["seconds"]) == 1


@pytest.mark.slow
def test_every_report_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_step, "S32", train_step.TINY)
    small = ["--models=tiny,tiny_tl", "--what=step", f"--images_dir={tmp_path}"]
    assert any("of it" in line for line in run(capsys, "--report=gains", *small))
    lines = run(capsys, "--report=memory", *small, "--micro_batch=1")
    assert sum("4 micro-batches" in line for line in lines) == 4
    lines = run(capsys, "--report=estimate", *small)
    assert [line.split()[:2] for line in lines[1:]] == [
        ["tiny", "step"],
        ["tiny_tl", "step"],
    ]
    points = {"TokenLearner": [(2, train_step.TINY_MODELS["tiny_tl"])]}
    monkeypatch.setattr(train_step, "growing", lambda kind: (points, kind))
    run(capsys, "--report=growth", "--growth=tokens", *small)
    assert (tmp_path / "compute_tokens.png").stat().st_size < 60_000


def test_an_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--models=b17"])
    assert "must be of ['s32'" in capsys.readouterr().err
