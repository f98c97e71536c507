import json

import pytest
import tensorflow as tf

from tl_tf import report


def test_what_is_passed_over_is_named_once_and_survives_a_restart(tmp_path, capfd):
    def passed_over(count, *places):
        rows = [[(-1, -1)] * (3 - len(places)) + list(places)]
        return {"count": tf.constant([count]), "places": tf.constant(rows)}

    path = tmp_path / "run" / "bad_records.json"
    note = report.PassedOver(path, lambda shard, record: f"s{shard} r{record}: broken")
    assert note(passed_over(0)) == {"input/bad_records": 0, "input/passed_over": 0}
    assert not path.exists()
    assert note(passed_over(2, (0, 1), (2, 0)))["input/bad_records"] == 2
    found = note(passed_over(4, (2, 0), (0, 1)))  # of the next epoch
    assert found == {"input/bad_records": 2, "input/passed_over": 4}
    lines = capfd.readouterr().out.splitlines()
    assert lines == [f"input  passed over {x}: broken" for x in ("s0 r1", "s2 r0")]
    again = report.PassedOver(path, lambda shard, record: f"s{shard} r{record}: again")
    assert again(passed_over(5, (0, 1), (3, 3)))["input/bad_records"] == 3
    assert capfd.readouterr().out == "input  passed over s3 r3: again\n"
    assert list(json.loads(path.read_text())) == ["0-1", "2-0", "3-3"]


@pytest.mark.parametrize(
    "seconds, text", [(0, "0s"), (59.9, "59s"), (61, "1m01s"), (11_100, "3h05m")]
)
def test_durations(seconds, text):
    assert report.time_left(seconds) == text


@pytest.mark.parametrize("skipped, ending", [(0, "%"), (2, "%  2 skipped: not finite")])
def test_skipped_steps_end_the_progress_line(skipped, ending, capfd):
    output = {"train/loss": 1.0, "train/learning_rate": 0.1}
    output |= {"input/examples_per_second": 3.0, "input/wait_share": 0.5}
    progress = report.TrainProgress(9, tf.Variable(4), noun="clips")
    progress(output | {"train/skipped_steps": skipped})
    assert capfd.readouterr().out.rstrip("\n").endswith(f"wait 50{ending}")


def test_the_first_step_and_long_loops_give_signs_of_life(capfd, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])
    progress = report.TrainProgress(900, tf.Variable(100), noun="clips")
    for done in range(50):
        progress.before_step(done, 50)
        now[0] += 14.0 if done else 90.0  # the first one is traced
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "train  tracing and compiling the first step: some take minutes"
    assert lines[1] == "train  at step 102, 14 s each; the loss comes with step 150"
    assert lines[2] == "train  at step 105, 14 s each; the loss comes with step 150"
    assert len(lines) == 1 + 16  # from then on every 42 s, the next multiple above 30
    output = {"train/loss": 1.0, "train/learning_rate": 0.1}
    progress(output | {"input/examples_per_second": 3.0, "input/wait_share": 0.5})
    capfd.readouterr()
    now[0] += 600.0  # an evaluation
    progress.before_step(0, 50)
    progress.before_step(1, 50)
    assert capfd.readouterr().out == ""
