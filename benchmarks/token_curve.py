"""Accuracy against cost of fewer tokens: the paper's form and two beyond it.

`python -m benchmarks.token_curve --out_dir=DIR` trains the quickstart's model on the
synthetic videos with S tokens a frame (the paper's), with 4 tokens a window of several
frames, and with 8 tokens by nested dropout, of which 1, 2, 4 or 8 are then used;
"cut" uses fewer of the paper's 8 without nested dropout. Prints a table and writes it
as JSON and as a picture. A run whose result is in DIR is not repeated.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import statistics
from pathlib import Path

from tl_tf import startup

startup.quiet_tensorflow()

from benchmarks import ablation, cost_table, training_runs  # noqa: E402

RECIPE = ablation.RECIPE
NUM_FRAMES = 8  # of the recipe
MOST_TOKENS = 8
STEPS = 300
COLORS = {
    "per frame": "#1b6ca8",
    "window": "#c1440e",
    "nested": "#2e8540",
    "cut": "#888",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """A place on one of the curves.

    Attributes:
      form: of COLORS.
      name: of its runs.
      tokens: of a clip.
      bindings: on top of the recipe's.
      trained: the run that is evaluated; "" for one of its own.
    """

    form: str
    name: str
    tokens: int
    bindings: tuple[str, ...]
    trained: str = ""


def _bindings(**options) -> tuple[str, ...]:
    return tuple(f"build_x2p1d.{key} = {value!r}" for key, value in options.items())


def points() -> list[Point]:
    """All places, those that evaluate another's run after it."""
    found = []
    for tokens in (1, 2, 4, MOST_TOKENS):
        name, options = f"per frame {tokens}", _bindings(num_tokens=tokens)
        found.append(Point("per frame", name, NUM_FRAMES * tokens, options))
    for frames in (2, 4, 8):
        options = _bindings(num_tokens=4, tokenizer="volume", window_frames=frames)
        tokens = NUM_FRAMES // frames * 4
        found.append(Point("window", f"window {frames}", tokens, options))
    nested = {"num_tokens": MOST_TOKENS, "nested_dropout": True}
    name = f"nested {MOST_TOKENS}"
    found.append(Point("nested", name, NUM_FRAMES * MOST_TOKENS, _bindings(**nested)))
    for tokens in (4, 2, 1):
        for form, options, trained in (
            ("nested", nested, name),
            ("cut", {"num_tokens": MOST_TOKENS}, f"per frame {MOST_TOKENS}"),
        ):
            options = _bindings(**options, used_tokens=tokens)
            count = NUM_FRAMES * tokens
            found.append(Point(form, f"{form} {tokens}", count, options, trained))
    return found


def picture(rows: list[dict]) -> str:
    """The curves as an SVG, mAP over the module's MFLOPs."""
    width, height, left, bottom = 560, 320, 60, 40
    most = max(row["mflops"] for row in rows) * 1.05
    least = min(row["mean"] - row["spread"] for row in rows) - 0.02

    def place(mflops: float, score: float) -> tuple[float, float]:
        x = left + mflops / most * (width - left - 20)
        return x, height - bottom - (score - least) / (1 - least) * (
            height - bottom - 30
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i in range(6):
        score = least + (1 - least) * i / 5
        _, y = place(0, score)
        parts.append(f'<path d="M{left} {y:.1f}H{width - 20}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 36}" y="{y + 4:.1f}">{score:.2f}</text>')
        x, _ = place(most * i / 5, least)
        parts.append(
            f'<text x="{x - 8:.1f}" y="{height - 22}">{most * i / 5:.1f}</text>'
        )
    parts.append(f'<text x="{left}" y="16">mAP</text>')
    parts.append(
        f'<text x="{width - 190}" y="{height - 6}">MFLOPs of the module</text>'
    )
    for k, (form, color) in enumerate(COLORS.items()):
        curve = sorted(
            (r for r in rows if r["form"] == form), key=lambda r: r["mflops"]
        )
        where = [place(row["mflops"], row["mean"]) for row in curve]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in where)
        parts.append(
            f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="2"/>'
        )
        for row, (x, y) in zip(curve, where, strict=True):
            _, top = place(0, min(1, row["mean"] + row["spread"]))
            _, low = place(0, row["mean"] - row["spread"])
            parts.append(f'<path d="M{x:.1f} {top:.1f}V{low:.1f}" stroke="{color}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>')
        parts.append(
            f'<text x="{left + 60 + 90 * k}" y="16" fill="{color}">{form}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    names = ["form", "tokens a clip", "MFLOPs of the module", "mAP, mean", "spread"]
    lines = cost_table.heading([*names, "single runs"])
    for row in rows:
        singles = ", ".join(f"{score:.3f}" for score in row["map"])
        lines.append(
            f"| {row['name']} | {row['tokens']} | {row['mflops']:.2f} |"
            f" {row['mean']:.3f} | {row['spread']:.3f} | {singles} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, prints the table, writes JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, default=Path("runs/token_curve"))
    parser.add_argument("--data_dir", type=Path, default=Path("datasets"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_parallel", type=int, default=2)
    flags = parser.parse_args()
    runs = training_runs.Runs(
        flags.out_dir, flags.data_dir, RECIPE, flags.steps, flags.num_parallel
    )
    runs.build_synthetic()
    scores: dict[tuple[str, int], float] = {}
    with concurrent.futures.ThreadPoolExecutor(flags.num_parallel) as pool:
        for is_own in (True, False):  # the others evaluate these
            futures = {}
            for seed in flags.seeds:
                for point in points():
                    if is_own and not point.trained:
                        call = runs.train
                    elif point.trained and not is_own:
                        call = functools.partial(runs.evaluate, trained=point.trained)
                    else:
                        continue
                    futures[point.name, seed] = pool.submit(
                        call, point.name, point.bindings, seed=seed
                    )
            scores |= {key: future.result() for key, future in futures.items()}
    rows = []
    for point in points():
        found = [scores[point.name, seed] for seed in flags.seeds]
        rows.append(
            {
                **dataclasses.asdict(point),
                "map": found,
                "mean": statistics.fmean(found),
                "spread": statistics.stdev(found) if len(found) > 1 else 0.0,
                "seeds": flags.seeds,
                "steps": flags.steps,
                "mflops": ablation.module_cost(point.bindings).flops / 1e6,
            }
        )
    rows.sort(key=lambda row: (list(COLORS).index(row["form"]), row["mflops"]))
    print(table(rows))
    path = flags.out_dir / f"token_curve-{flags.steps}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".svg").write_text(picture(rows), encoding="utf-8")
    print(f"written to {path} and {path.with_suffix('.svg')}")


if __name__ == "__main__":
    main()
