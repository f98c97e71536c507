"""The loss curve of one device beside those of replicas and of hosts, on this machine.

`python -m benchmarks.many_devices` builds a small set of made-up videos, trains on it
by run.py on one device, on 2, 4 and 8 logical devices, and in 2 and 4 processes as
hosts, and prints the losses and the scores; `--images_dir=DIR` draws the curves. The
batch is the whole split, and norms are taken over all of it: then all see the same in a
step.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

from benchmarks import cost_table, measure  # noqa: E402
from tests import tiny  # noqa: E402

# Of these numbers each of 4 shards, hence each host, has as many.
TRAIN_VIDEOS, TEST_VIDEOS, NUM_SHARDS = 48, 16, 4
WAYS = {  # replicas of a process, processes
    "1 device": (1, 1),
    "2 replicas": (2, 1),
    "4 replicas": (4, 1),
    "8 replicas": (8, 1),
    "2 processes": (1, 2),
    "4 processes": (1, 4),
}
BINDINGS = (
    f"BATCH_SIZE = {TRAIN_VIDEOS}",
    "eval/clip_dataset.batch_size = 8",
    "LEARNING_RATE = 0.3",
    "train.learning_rate_batch = None",
    "train.steps_per_loop = 1",
    "train.checkpoint_every_steps = 1000",
    "build_schedule.warmup_steps = 5",
    "build_x2p1d.batch_norm = 'sync'",
)


def build_data(data_dir: Path) -> None:
    """Builds the videos, unless they are there."""
    options = {
        "data_dir": data_dir,
        "train_videos": TRAIN_VIDEOS,
        "test_videos": TEST_VIDEOS,
        "num_shards": NUM_SHARDS,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "data.build", "synthetic", *flags]
    subprocess.run(command, cwd=tiny.ROOT, check=True, stdout=subprocess.DEVNULL)


def train(name: str, steps: int, *, data_dir: Path, out_dir: Path) -> dict:
    """Trains and evaluates in one of WAYS, unless that has been done.

    Returns:
      {"losses": by step, "map"}.

    Raises:
      RuntimeError: a process failed; names its log.
    """
    num_replicas, num_hosts = WAYS[name]
    model_dir = out_dir / f"{name.replace(' ', '_')}_{steps}"
    result = model_dir / "results" / f"test-{steps}.json"
    if not result.is_file():
        model_dir.mkdir(parents=True, exist_ok=True)
        bindings = [
            *BINDINGS,
            f"TOTAL_STEPS = {steps}",
            f"configure_runtime.num_cpu_replicas = {num_replicas}",
        ]
        arguments = [
            sys.executable,
            "run.py",
            f"--gin_file={tiny.QUICKSTART}",
            f"--data_dir={data_dir}",
            f"--model_dir={model_dir}",
            *(f"--gin_bindings={binding}" for binding in bindings),
        ]
        if num_hosts == 1:
            logs = [model_dir / "0.log"]
            processes = [tiny.start(arguments, logs[0])]
        else:
            processes, logs = tiny.start_hosts(arguments, num_hosts, model_dir)
        for process, log in zip(processes, logs, strict=True):
            if process.wait():
                raise RuntimeError(f"{name} failed: see {log}.")
    metrics = json.loads(result.read_text(encoding="utf-8"))["metrics"]
    return {"losses": tiny.losses(model_dir), "map": metrics["map"]}


def table(found: dict[str, dict]) -> str:
    """Losses at some steps, and how far the curve is from one device's, as Markdown."""
    one, *_ = found.values()
    steps = sorted(one["losses"])
    shown = sorted({steps[0], *steps[9::10], steps[-1]})
    names = ["", *(f"loss, step {step}" for step in shown)]
    lines = cost_table.heading([*names, "largest difference", "test mAP"])
    for name, run in found.items():
        apart = max(
            abs(run["losses"][step] / one["losses"][step] - 1) for step in steps
        )
        losses = " | ".join(f"{run['losses'][step]:.6f}" for step in shown)
        lines.append(f"| {name} | {losses} | {apart:.1e} | {run['map']:.6f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the table and draws the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, default=Path("runs/many_devices"))
    parser.add_argument("--steps", type=int, default=40, help="at least 6")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--images_dir", type=Path)
    flags = parser.parse_args(argv)
    out_dir = flags.out_dir.absolute()
    data_dir = out_dir / "data"
    build_data(data_dir)
    found = {
        name: train(name, flags.steps, data_dir=data_dir, out_dir=out_dir)
        for name in flags.ways
    }
    print(table(found))
    if flags.images_dir:
        measure.draw_curves(
            flags.images_dir / "many_devices_loss.png",
            {name: [*run["losses"].items()] for name, run in found.items()},
            title=f"one training in {len(found)} ways, {TRAIN_VIDEOS} clips a step",
            x_label="step",
            y_label="train/loss",
            is_log=False,
        )


if __name__ == "__main__":
    main()
