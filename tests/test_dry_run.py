"""What a training will need, before it: the table by hand, and a recipe's rehearsal."""

import dataclasses
from types import SimpleNamespace

import gin
import pytest

from tests import tiny
from tl_tf import dry_run, experiment

DATA = SimpleNamespace(num_batches=5, num_examples=40, num_views=6, classes=["a"] * 9)
PLAN = dry_run.Plan(
    start=200,
    total_steps=1200,
    batch_size=16,
    device_batch=4,
    noun="videos",
    num_loops=20,
    num_checkpoints=10,
    kept_checkpoints=3,
    evaluations=[dry_run.Evaluations("evaluation", None, DATA, 2)],
)
NEEDS = dry_run.Needs(
    first_step=12.4,
    step=0.25,
    wait_share=0.04,
    evaluation_batches=(1.5,),
    save=0.5,
    checkpoint_bytes=12_300_000,
    process_bytes=1_240_000_000,
    weight_bytes=30_000_000,
    activation_bytes=2_500_000_000,
)


def rows(text: str, name: str) -> list[list[str]]:
    """The cells of every row of that name: of time, then of memory and disk."""
    found = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
    return [line.removeprefix(f"  {name}").split() for line in found]


def test_the_table_adds_up(tmp_path):
    text = dry_run.table(PLAN, NEEDS, model_dir=tmp_path / "runs" / "new")
    assert text.startswith("dry run: 1000 steps of 16 videos, from step 200; nothing")
    assert rows(text, "first step")[0][:5] == ["12", "s", "1", "12", "s"]
    assert rows(text, "steps")[0][:4] == ["0.25", "s", "999", "4m09s"]
    assert "64 videos/s, waiting 4% for input" in text
    assert rows(text, "evaluation")[0][:5] == ["7.5", "s", "2", "15", "s"]
    saves, files = rows(text, "checkpoints")
    assert saves == ["0.5", "s", "10", "5", "s"]
    assert files[:5] == ["12", "MB", "4", "49", "MB"]
    seconds, num_bytes = rows(text, "together")
    assert seconds == ["4m42s"]  # 12.4 + 249.75 + 15 + 5
    assert rows(text, "this process")[0][:2] == ["1.2", "GB"]
    assert rows(text, "a device")[0][:2] == ["2.5", "GB"]
    assert "optimizer 30 MB; activations of 4 videos 2.5 GB" in text
    # 4 of 12.3 MB; 2 x (40 x 6 x 10 x 4 bytes and what is written besides), 20 loops
    assert num_bytes[:2] == ["50", "MB"]
    assert "NOT ENOUGH" not in text


def test_a_disk_that_is_too_small_is_told(tmp_path):
    needs = dataclasses.replace(NEEDS, checkpoint_bytes=10**18, activation_bytes=None)
    text = dry_run.table(PLAN, needs, model_dir=tmp_path)
    assert "NOT ENOUGH: free space, lower train.keep_checkpoints" in text
    assert "activations of 4 videos not known" in text


def run(data_dir, model_dir, *bindings: str, **options) -> None:
    gin.clear_config()
    tiny.load(tiny.QUICKSTART, *bindings)
    experiment.run(
        "train_and_eval", model_dir=model_dir, data_dir=data_dir, tpu=None, **options
    )


def test_a_dry_run_foretells_the_run_and_leaves_nothing(tiny_data, tmp_path, capfd):
    bindings = (
        "TOTAL_STEPS = 4",
        "train.eval_every_steps = 2",
        "train.quick_eval = True",
        "train.best_metric = 'map'",
        "build_optimizer.ema_decay = 0.9",
    )
    model_dir = tmp_path / "runs" / "new"
    run(tiny_data, model_dir, *bindings, dry_run=True)
    assert not list(tmp_path.iterdir())
    text = capfd.readouterr().out
    assert "dry run: 4 steps of 2 videos; nothing of it is kept" in text
    assert rows(text, "quick eval")[0][2] == "2"
    assert rows(text, "evaluation")[0][2] == "1"
    foretold = rows(text, "checkpoints")[1]
    assert foretold[2] == "4"  # of 2 evaluations, the best, one while it is written
    run(tiny_data, model_dir, *bindings)
    num_bytes = sum(path.stat().st_size for path in model_dir.glob("ckpt-4.*"))
    assert float(foretold[0]) == pytest.approx(num_bytes / 1e6, abs=0.06)
    capfd.readouterr()
    before = {path: path.stat().st_mtime_ns for path in model_dir.rglob("*")}
    run(tiny_data, model_dir, *bindings, "TOTAL_STEPS = 6", dry_run=True)
    assert "dry run: 2 steps of 2 videos, from step 4" in capfd.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in model_dir.rglob("*")}
    assert {p: t for p, t in after.items() if p.is_file()} == {
        p: t for p, t in before.items() if p.is_file()
    }


def test_a_dry_run_meets_what_the_run_would(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="build_evaluator.metric must be one of"):
        run(
            tiny_data,
            tmp_path / "new",
            "build_evaluator.metric = 'unknown'",
            dry_run=True,
        )
    assert not list(tmp_path.iterdir())
