"""Training in bfloat16 beside float32: the quickstart's score, seed by seed.

`python -m benchmarks.precision --out_dir=DIR` trains each seed in both, and prints a
table of the test's mAP. A run whose result is in DIR is not repeated.
"""

import argparse
import concurrent.futures
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cost_table, training_runs

RECIPE = "gin/quickstart.gin"
STEPS = 1200  # of the recipe
PRECISIONS = ("float32", "mixed_bfloat16")


def table(scores: dict[str, list[float]], seeds: Sequence[int]) -> str:
    """The scores as Markdown, and how far apart the two precisions are."""
    lines = cost_table.heading(
        ["", *(f"seed {seed}" for seed in seeds), "mean", "spread"]
    )
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = [name, *values, statistics.fmean(values), spread]
        texts = [c if isinstance(c, str) else f"{c:.4f}" for c in cells]
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, default=Path("runs/precision"))
    parser.add_argument("--data_dir", type=Path, default=Path("datasets"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_parallel", type=int, default=2)
    flags = parser.parse_args(argv)
    runs = training_runs.Runs(
        flags.out_dir, flags.data_dir, RECIPE, flags.steps, flags.num_parallel
    )
    runs.build_synthetic()

    def train(seed: int, precision: str) -> float:
        binding = f"configure_runtime.precision = {precision!r}"
        return runs.train(precision, [binding], seed=seed)

    with concurrent.futures.ThreadPoolExecutor(flags.num_parallel) as pool:
        calls = {
            (precision, seed): pool.submit(train, seed, precision)
            for seed in flags.seeds
            for precision in PRECISIONS
        }
    scores = {
        precision: [calls[precision, seed].result() for seed in flags.seeds]
        for precision in PRECISIONS
    }
    print(table(scores, flags.seeds))


if __name__ == "__main__":
    main()
