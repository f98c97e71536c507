"""Tables XII to XIV and Section 6.3.3 in small: every module on the synthetic videos.

`python -m benchmarks.ablation --out_dir=DIR` trains the quickstart's model with each
module, the same steps and seeds, one process a run and `--num_parallel` at a time, and
prints a table by mean mAP. A run whose result is in DIR is not repeated: the same
command goes on where it was. `--only MLPMixer "+ conv1d"` takes the rows whose name
ends so.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

import gin  # noqa: E402

from benchmarks import cost_table  # noqa: E402
from tl_tf import config, cost, experiment  # noqa: E402
from tl_tf.layers import conv2plus1d  # noqa: E402

ROOT = Path(__file__).parents[1]
RECIPE = "gin/quickstart.gin"
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
# The recipe's own 1200 steps end with mAP 1.0 whatever the module; after these the
# modules still differ.
STEPS = 500

_MODEL = {"num_heads": 4}  # of 108 channels
_TOKENS = {"module": "token_learner"}
_FRAMES = _TOKENS | {"tokenizer": "grid", "num_tokens": 1}  # a token is a frame's mean
_NO_CONV2D = {"use_conv2d": False}

# Name: where the paper has it, bindings of build_x2p1d on top of the recipe's.
MODULES = {
    "conv2d + conv1d": ("XIII", {"module": "conv1d"}),
    "joint MHSA": ("XII", {"module": "joint"} | _NO_CONV2D),
    "conv2d + joint MHSA": ("XII", {"module": "joint"}),
    "conv2d + temporal MHSA": ("XIII, XIV", {"module": "temporal"}),
    "conv2d + temporal VectT": (
        "XIV",
        {"module": "temporal", "transformer": "vector"},
    ),
    "conv2d + spatial MHSA": ("–", {"module": "spatial"}),
    "spatial + temporal MHSA": ("XIII", {"module": "spatial_temporal"} | _NO_CONV2D),
    "conv2d + spatial + temporal MHSA": ("XIII", {"module": "spatial_temporal"}),
    "conv2d + MLPMixer": ("XIII", {"module": "mlp_mixer"}),
    "TokenLearner": ("XII, XIII", _TOKENS | _NO_CONV2D),
    "spatial MHSA + TokenLearner": (
        "XIII",
        {"module": "spatial_token_learner"} | _NO_CONV2D,
    ),
    "conv2d + TokenLearner": ("XII to XIV", _TOKENS),
    "conv2d + TokenLearner + MHSA": ("XIV", _TOKENS | {"transformer": "mhsa"}),
    "conv2d + TokenLearner, broadcasting": ("–", _TOKENS | {"restore": "broadcast"}),
    "conv2d + prior-only + broadcasting": (
        "XIV",
        _FRAMES | {"transformer": "prior", "restore": "broadcast"},
    ),
    "conv2d + VectT + broadcasting": ("XIV", _FRAMES | {"restore": "broadcast"}),
    "conv2d + VectT + TokenFuser": ("XIV", _FRAMES),
    "conv2d + grid split": ("6.3.3 (1)", _TOKENS | {"tokenizer": "grid"}),
    "conv2d + dense tokens": (
        "6.3.3 (2)",
        _TOKENS | {"tokenizer": "dense", "dense_grid": (4, 4)},
    ),
    "conv2d + pooled tokens": ("6.3.3 (3)", _TOKENS | {"tokenizer": "pooled"}),
}


def bindings_of(name: str) -> list[str]:
    """The bindings of a row, on top of the recipe."""
    options = _MODEL | MODULES[name][1]
    return [f"build_x2p1d.{key} = {value!r}" for key, value in options.items()]


@dataclasses.dataclass(frozen=True)
class Runs:
    """Where runs are made, and how.

    Attributes:
      out_dir: holds a folder for each number of steps, in it one for each run.
      data_dir: holds the synthetic data set.
      steps: of training.
      num_parallel: runs at a time, which share the processor's cores.
    """

    out_dir: Path
    data_dir: Path
    steps: int
    num_parallel: int

    def train(self, name: str, seed: int) -> float:
        """Trains and evaluates a row, unless that has been done.  -> mAP

        Raises:
          RuntimeError: the run failed; names its log.
        """
        words = "".join(c if c.isalnum() else " " for c in name).split()
        model_dir = self.out_dir / f"steps_{self.steps}" / f"{'_'.join(words)}_{seed}"
        result = model_dir / "results" / f"test-{self.steps}.json"
        if not result.exists():
            model_dir.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            log = model_dir / "log.txt"
            with open(log, "w", encoding="utf-8") as file:
                process = subprocess.run(
                    self._command(name, seed, model_dir),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=os.environ | dict.fromkeys(THREADS, str(self._threads())),
                )
            if process.returncode:
                raise RuntimeError(f"{name!r} with seed {seed} failed: see {log}.")
            seconds = time.perf_counter() - started
            print(f"{name}, seed {seed}: {seconds:.0f} s", flush=True)
        return json.loads(result.read_text(encoding="utf-8"))["metrics"]["map"]

    def _threads(self) -> int:
        return max(1, os.cpu_count() // self.num_parallel)

    def _command(self, name: str, seed: int, model_dir: Path) -> list[str]:
        bindings = [f"TOTAL_STEPS = {self.steps}", f"SEED = {seed}"]
        return [
            sys.executable,
            "run.py",
            f"--gin_file={RECIPE}",
            f"--model_dir={model_dir.absolute()}",
            f"--data_dir={self.data_dir.absolute()}",
            *(f"--gin_bindings={b}" for b in [*bindings, *bindings_of(name)]),
        ]


def module_cost(name: str) -> cost.Row:
    """What stands between the 1x1 convolutions of the block, on one clip."""
    gin.clear_config()
    config.load([RECIPE], bindings_of(name))
    counted = experiment.inspect()[1]
    inside = {f"stage_4/block_0/{layer}" for layer in ("conv2d", *conv2plus1d.LAYERS)}
    rows = tuple(row for row in counted.at_depth(3) if row.scope in inside)
    return dataclasses.replace(counted, rows=rows).total


def table(rows: list[dict]) -> str:
    """The rows as Markdown, the best first."""
    names = ["module", "table", "mAP, mean", "spread", "single runs", "MFLOPs"]
    lines = cost_table.heading([*names, "parameters"])
    for row in rows:
        cells = [
            row["module"],
            row["table"],
            f"{row['mean']:.3f}",
            f"{row['spread']:.3f}",
            ", ".join(f"{score:.3f}" for score in row["map"]),
            f"{row['mflops']:.2f}",
            f"{row['parameters'] / 1e3:.1f}k",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, prints the table, writes it beside the runs as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--data_dir", type=Path, default=Path("datasets"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[""], help="ends of rows' names")
    parser.add_argument("--num_parallel", type=int, default=2)
    flags = parser.parse_args()
    names = [name for name in MODULES if name.endswith(tuple(flags.only))]
    if not names:
        parser.error(f"--only: none of {list(MODULES)} ends with {flags.only}.")
    runs = Runs(flags.out_dir, flags.data_dir, flags.steps, flags.num_parallel)
    # Once, before several runs find it missing.
    build = [sys.executable, "-m", "data.build", "synthetic"]
    data_dir = flags.data_dir.absolute()
    subprocess.run([*build, f"--data_dir={data_dir}"], cwd=ROOT, check=True)

    with concurrent.futures.ThreadPoolExecutor(flags.num_parallel) as pool:
        found = {
            name: [pool.submit(runs.train, name, seed) for seed in flags.seeds]
            for name in names
        }
    rows = []
    for name in names:
        scores = [future.result() for future in found[name]]
        counted = module_cost(name)
        row = {
            "module": name,
            "table": MODULES[name][0],
            "mean": statistics.fmean(scores),
            "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "map": scores,
            "seeds": flags.seeds,
            "steps": flags.steps,
            "mflops": counted.flops / 1e6,
            "parameters": counted.parameters,
            "bindings": bindings_of(name),
        }
        rows.append(row)
    rows.sort(key=lambda row: -row["mean"])
    print(table(rows))
    path = flags.out_dir / f"ablation-{flags.steps}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
