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
import statistics
from collections.abc import Sequence
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

import gin  # noqa: E402

from benchmarks import cost_table, training_runs  # noqa: E402
from tl_tf import config, cost, experiment, inspection  # noqa: E402, F401
from tl_tf.layers import conv2plus1d  # noqa: E402

RECIPE = "gin/quickstart.gin"
# The recipe's own 1200 steps end with mAP 1.0 whatever the module; after these the
# modules still differ.
STEPS = 300

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


def module_cost(bindings: Sequence[str]) -> cost.Row:
    """What stands between the 1x1 convolutions of the block, on one clip."""
    gin.clear_config()
    config.load([RECIPE], bindings)
    counted = inspection.inspect()[1]
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
    runs = training_runs.Runs(
        flags.out_dir, flags.data_dir, RECIPE, flags.steps, flags.num_parallel
    )
    runs.build_synthetic()
    with concurrent.futures.ThreadPoolExecutor(flags.num_parallel) as pool:
        # All modules with one seed, then with the next.
        futures = {
            (seed, name): pool.submit(runs.train, name, bindings_of(name), seed=seed)
            for seed in flags.seeds
            for name in names
        }
    rows = []
    for name in names:
        scores = [futures[seed, name].result() for seed in flags.seeds]
        counted = module_cost(bindings_of(name))
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
