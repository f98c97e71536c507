"""The best checkpoint of a run, and the end of a training that gets no better."""

import json
import shutil
from pathlib import Path

import gin
import numpy as np
import pytest

from tests import test_end_to_end, tiny
from tl_tf import best, checkpoint, durable, experiment

KNOWN = ("map", "wap", "loss")
NAN = float("nan")
EVERY_STEP = (
    "TOTAL_STEPS = 4",
    "LEARNING_RATE = 0.3",
    "build_schedule.decay = 'constant'",  # so that 2 steps are the first of 4
    "train.steps_per_loop = 1",
    "train.eval_every_steps = 1",
    "train.keep_checkpoints = 3",
    "train.best_metric = 'loss'",
)


def saved(folder: Path, step: int) -> Path:
    """A whole checkpoint as its files: no TensorFlow looks into it."""
    prefix = folder / f"ckpt-{step}"
    prefix.with_suffix(".index").write_bytes(b"index %d" % step)
    prefix.with_suffix(".data-00000-of-00001").write_bytes(b"data %d" % step)
    durable.seal(prefix)
    return prefix


def judge(folder: Path, metric: str = "map", **options) -> best.Best:
    return best.Best(folder / best.FOLDER, metric, known=KNOWN, **options)


@pytest.mark.parametrize(
    "metric, values, wanted",
    [
        ("map", [0.2, 0.5, 0.4], 2),
        ("loss", [0.2, 0.5, 0.1], 3),
        ("map", [0.5, 0.5, 0.5], 1),  # of equal ones the first
        ("map", [NAN, 0.1, NAN], 2),
        ("loss", [NAN, 7.0, NAN], 2),
    ],
)
def test_the_best_checkpoint_is_kept_apart(metric, values, wanted, tmp_path):
    found = judge(tmp_path, metric)
    for step, value in enumerate(values, 1):
        prefix = saved(tmp_path, step)
        found.add(step, {metric: value, "other": 9.0}, prefix)
        durable.delete(prefix)  # as the manager of the newest ones does
    assert found.step == wanted and found.value == values[wanted - 1]
    assert found.evals_ago == len(values) - wanted
    (kept,) = durable.prefixes(found.folder)
    assert kept.name == f"ckpt-{wanted}" and durable.fault(kept) == ""
    assert kept.with_suffix(".index").read_bytes() == b"index %d" % wanted
    assert checkpoint.find(tmp_path, "best") == kept


def test_no_room_is_taken_while_the_checkpoint_is_among_the_newest(tmp_path):
    prefix = saved(tmp_path, 1)
    judge(tmp_path).add(1, {"map": 0.5}, prefix)
    assert prefix.with_suffix(".index").stat().st_nlink == 2


def test_another_file_system_gets_a_copy(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("wants a second file system")
    folder = other / tmp_path.name
    try:
        there = durable.link(saved(tmp_path, 1), folder)
        assert durable.fault(there) == ""
        assert there.with_suffix(".index").stat().st_nlink == 1
    finally:
        shutil.rmtree(folder)


def test_a_checkpoint_without_checksums_gets_them(tmp_path):
    prefix = saved(tmp_path, 1)
    prefix.with_suffix(".sha256").unlink()
    assert durable.is_sealed(durable.link(prefix, tmp_path / "there"))


def test_patience_ends_after_so_many_without_a_better_one(tmp_path):
    found = judge(tmp_path, patience=2)
    ends = []
    for step, value in enumerate([0.1, 0.3, 0.2, 0.4, 0.4, 0.3], 1):
        found.add(step, {"map": value}, saved(tmp_path, step))
        ends.append(found.is_over)
    assert ends == [False] * 5 + [True]
    assert judge(tmp_path, patience=2).is_over  # after a restart, too
    assert not judge(tmp_path).is_over


def test_a_restart_forgets_what_lies_ahead(tmp_path):
    found = judge(tmp_path)
    for step, value in ((1, 0.1), (2, 0.5), (3, 0.2)):
        found.add(step, {"map": value}, saved(tmp_path, step))
    again = judge(tmp_path)
    assert again.start(3) and again.step == 2
    assert not again.start(4)
    assert again.start(1) and again.step == 1
    facts = {"metric": "map", "value": 0.1, "step": 1, "checkpoint": "best/ckpt-1"}
    assert again.facts(2, None) == facts
    better = {"value": 0.6, "step": 2, "checkpoint": "best/ckpt-2"}
    assert again.facts(2, {"map": 0.6}) == facts | better


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"metric": "top1"},
            r"train.best_metric must be one of \('map', 'wap', 'loss'",
        ),
        ({"patience": 0}, "train.patience_evals must be at least 1 or None, got 0"),
        ({"metric": "loss"}, "keeps its best checkpoint by 'map', but train.best_metr"),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path):
    judge(tmp_path).add(1, {"map": 0.5}, saved(tmp_path, 1))
    with pytest.raises(ValueError, match=message):
        judge(tmp_path, **options)


@pytest.mark.parametrize("text", ["", "[]", '{"metric": "map", "values": {"a": 1}}'])
def test_a_record_that_cannot_be_read_is_named(text, tmp_path):
    (tmp_path / best.FOLDER).mkdir()
    (tmp_path / best.FOLDER / "evaluations.json").write_text(text)
    with pytest.raises(ValueError, match="wanted the values of the evaluations so far"):
        judge(tmp_path)


@pytest.mark.parametrize(
    "mode, bindings, message",
    [
        ("train", ("train.best_metric = 'map'",), "wants --mode=train_and_eval and"),
        (
            "train_and_eval",
            ("train.best_metric = 'map'",),
            "and train.eval_every_steps",
        ),
        ("train_and_eval", ("train.patience_evals = 2",), "wants train.best_metric"),
        (
            "train_and_eval",
            ("train.best_metric = 'top1'", "train.eval_every_steps = 1"),
            "must be one of",
        ),
    ],
)
def test_the_best_of_no_evaluations_is_refused(
    mode, bindings, message, tiny_data, tmp_path
):
    with pytest.raises(ValueError, match=message):
        train(tiny_data, tmp_path, *bindings, mode=mode)


def train(data_dir: Path, model_dir: Path, *bindings, mode="train_and_eval", **options):
    gin.clear_config()
    tiny.load(tiny.QUICKSTART, *bindings)
    experiment.run(mode, model_dir=model_dir, data_dir=data_dir, tpu=None, **options)


def record(model_dir: Path) -> dict:
    return json.loads((model_dir / best.FOLDER / "evaluations.json").read_text())


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory) -> Path:
    """A run of 4 steps, each of them evaluated."""
    model_dir = tmp_path_factory.mktemp("best") / "whole"
    train(tiny_data, model_dir, *EVERY_STEP)
    return model_dir


def test_a_run_keeps_its_best_and_says_so(whole, tiny_data, capfd):
    losses = {int(step): value for step, value in record(whole)["values"].items()}
    assert list(losses) == [1, 2, 3, 4]
    results = [
        json.loads((whole / "results" / f"test-{step}.json").read_text())
        for step in losses
    ]
    assert [r["metrics"]["loss"] for r in results] == pytest.approx([*losses.values()])
    least = min(losses, key=losses.get)
    assert results[-1]["best"] == {
        "metric": "loss",
        "value": losses[least],
        "step": least,
        "checkpoint": f"best/ckpt-{least}",
    }
    (whole / "results" / f"test-{least}.json").unlink()
    train(tiny_data, whole, *EVERY_STEP, mode="eval", checkpoint="best")
    assert f"eval   step {least}  synthetic/test" in capfd.readouterr().out
    metrics = test_end_to_end.metrics_of(whole, step=least)
    assert metrics["loss"] == pytest.approx(losses[least], rel=1e-6)


def test_a_run_killed_before_it_judged_ends_as_the_unbroken_one(
    whole, tiny_data, tmp_path, capfd
):
    """Killed while step 2 was evaluated; what is best is of a step it has not seen."""
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    for step in (3, 4):
        durable.delete(broken / f"ckpt-{step}")
    earlier = record(broken)
    earlier["values"] = {"1": earlier["values"]["1"]}
    (broken / best.FOLDER / "evaluations.json").write_text(json.dumps(earlier))
    train(tiny_data, broken, *EVERY_STEP)
    printed = capfd.readouterr().out
    assert "going on from checkpoint ckpt-2" in printed
    assert printed.count("eval   step 2 ") == 1
    assert record(broken) == record(whole)
    folders = (broken, whole)
    kept, wanted = (
        test_end_to_end.tensors(checkpoint.find(f, "best")) for f in folders
    )
    assert kept.keys() == wanted.keys()
    for name, values in wanted.items():
        if not name.startswith("save_counter"):
            np.testing.assert_array_equal(kept[name], values, err_msg=name)


def test_a_training_that_gets_no_better_stops_and_stays_stopped(
    tiny_data, tmp_path, capfd
):
    (tmp_path / best.FOLDER).mkdir()
    unbeatable = {"metric": "loss", "values": {"0": -1.0}}
    path = tmp_path / best.FOLDER / "evaluations.json"
    path.write_text(json.dumps(unbeatable))
    patience = (*EVERY_STEP, "train.patience_evals = 2", "train.quick_eval = True")
    for life in range(2):
        train(tiny_data, tmp_path, *patience)
        printed = capfd.readouterr().out
        assert (
            "train  stopped at step 2 of 4: 2 evaluations in a row without a better"
            " loss (train.patience_evals)"
        ) in printed
        assert ("train  step 2/4" in printed) == (life == 0)
        assert "train  step 3/4" not in printed
    names = {path.name for path in (tmp_path / "results").glob("*.json")}
    assert names == {"test-quick-1.json", "test-quick-2.json", "test-2.json"}
    whole = json.loads((tmp_path / "results" / "test-2.json").read_text())
    assert whole["best"]["step"] == 0  # by the quick ones, not by itself
