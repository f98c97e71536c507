"""The tables of the trainings that are run beside each other; the runs are too long."""

from benchmarks import many_devices, precision


def test_losses_at_some_steps_and_the_largest_difference():
    one = {"losses": {step: 1 / step for step in range(1, 13)}, "map": 0.75}
    other = {"losses": {**one["losses"], 4: 0.25 * 1.002}, "map": 0.5}
    lines = many_devices.table({"1 device": one, "2 processes": other}).splitlines()
    assert lines[0].startswith("|  | loss, step 1 | loss, step 10 | loss, step 12 | la")
    losses = "1.000000 | 0.100000 | 0.083333"
    assert lines[2] == f"| 1 device | {losses} | 0.0e+00 | 0.750000 |"
    assert lines[3] == f"| 2 processes | {losses} | 2.0e-03 | 0.500000 |"


def test_scores_of_each_seed_and_their_spread():
    lines = precision.table({"float32": [0.9, 0.8], "other": [0.5, 0.5]}, [0, 7])
    assert lines.splitlines() == [
        "|  | seed 0 | seed 7 | mean | spread |",
        "|---|---|---|---|---|",
        "| float32 | 0.9000 | 0.8000 | 0.8500 | 0.0707 |",
        "| other | 0.5000 | 0.5000 | 0.5000 | 0.0000 |",
    ]
