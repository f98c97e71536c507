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
    lines = run(
        capsys, "--models=tiny", "--what=step", "--rivals=flax", f"--json={path}"
    )
    assert lines[0].split() == ["model", "what", "dtype", "rival", "XLA", "graph", "MB"]
    rows = [line for line in lines if re.match("tiny +step +float32 +ours", line)]
    assert len(rows) == 2
    assert re.search(r"ours, XLA +1 \(1 to 1\)", rows[0])
    (results,) = json.loads(path.read_text()).values()
    assert len(results["ours, graph"]["seconds"]) == 1


@pytest.mark.slow
def test_every_report_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_step, "S32", train_step.TINY)
    small = ["--models=tiny,tiny_tl", "--what=step", f"--images_dir={tmp_path}"]
    assert any("of it" in line for line in run(capsys, "--report=gains", *small))
    lines = run(capsys, "--report=memory", *small, "--micro_batch=1")
    assert sum("4 micro-batches" in line for line in lines) == 4
    points = {"TokenLearner": [(2, train_step.TINY_MODELS["tiny_tl"])]}
    monkeypatch.setattr(train_step, "growing", lambda kind: (points, kind))
    run(capsys, "--report=growth", "--growth=tokens", *small)
    assert (tmp_path / "compute_tokens.png").stat().st_size < 60_000


def test_an_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_step.main(["--models=b17"])
    assert "must be of ['s32'" in capsys.readouterr().err
