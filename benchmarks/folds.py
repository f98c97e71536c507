"""Accuracy over folds of one's own videos: each is tested by a model of the others.

  python -m benchmarks.folds --videos_dir=DIR --groups=groups.json \
    --recipes gin/folder_x21d_tl.gin gin/folder_x21d.gin --seeds 0 1 2 --out_dir=folds

DIR holds a folder of videos for each class. Videos of one group, as those of one camera
or one person, stay in one fold: `groups.json` is a list of {"file": "<class>/x.mp4",
"group": 7}. Folds are runs of groups in ascending order; without groups, runs of each
class's files. Every fold is built by data.build folder and every model trained by
run.py, for as many steps as the recipe says, and then tested once. A command that was
stopped goes on where it was; for other videos or groups, take another --out_dir.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_tf import config

ROOT = Path(__file__).resolve().parents[1]


def fold_of_files(
    files: Sequence[str],
    num_folds: int,
    group_of: Mapping[str, int] | None = None,
    *,
    stratify: bool = True,
) -> dict[str, int]:
    """The fold of each video: groups are lined up, and the line is cut into equal runs.

    Args:
      files: "<class>/x.mp4".
      num_folds: at least 2.
      group_of: a number for each file, the order of the line; None for a group of its
        own for each file, ordered by name.
      stratify: groups that hold the same classes have a line of their own, so that
        every fold has its share of each.

    Raises:
      ValueError: for a file without a group, or a fold without a video.
    """
    groups: dict[Any, list[str]] = {}
    for file in sorted(files):
        if group_of is not None and file not in group_of:
            raise ValueError(f"{file}: has no group. Add it to the JSON of --groups.")
        groups.setdefault(group_of[file] if group_of else file, []).append(file)
    lines: dict[frozenset[str], list[list[str]]] = {}
    for _, members in sorted(groups.items()):
        classes = frozenset(file.split("/")[0] for file in members if stratify)
        lines.setdefault(classes, []).append(members)
    fold_of = {}
    for line in lines.values():
        length, before = sum(map(len, line)), 0
        for members in line:
            middle = before + len(members) / 2
            fold_of |= dict.fromkeys(members, int(middle * num_folds / length))
            before += len(members)
    missing = set(range(num_folds)) - set(fold_of.values())
    if missing:
        raise ValueError(
            f"fold {min(missing)} of {num_folds} gets none of {len(files)} videos. Ask"
            " for fewer --folds, or give smaller --groups."
        )
    return fold_of


def summary(counts: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Accuracies of the folds, their mean and spread, and what classes come to.

    Args:
      counts: for each fold, by class, how many videos it has and how many of them were
        recognised.

    Returns:
      by_fold, mean, spread (standard deviation over the folds), pooled (of all videos),
      by_class (over all folds) and balanced, the mean of by_class.
    """
    by_fold = []
    total: dict[str, list[int]] = {}
    for fold in counts:
        videos, correct = map(sum, zip(*fold.values(), strict=True))
        by_fold.append(correct / videos)
        for name, (of, right) in fold.items():
            count = total.setdefault(name, [0, 0])
            count[0] += of
            count[1] += right
    by_class = {name: right / of for name, (of, right) in sorted(total.items())}
    videos, correct = map(sum, zip(*total.values(), strict=True))
    return {
        "by_fold": by_fold,
        "mean": statistics.mean(by_fold),
        "spread": statistics.stdev(by_fold) if len(by_fold) > 1 else 0.0,
        "pooled": correct / videos,
        "by_class": by_class,
        "balanced": statistics.mean(by_class.values()),
    }


def link_videos(
    folds: Mapping[str, int], *, test_fold: int, source: Path, to: Path
) -> None:
    """Links every video to `<to>/train/<class>/` or `<to>/test/<class>/`."""
    for file, fold in folds.items():
        link = to / ("test" if fold == test_fold else "train") / file
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((source / file).resolve())


def _run(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], check=True, cwd=ROOT, env=environment)


def _test(
    recipe: str, bindings: Sequence[str], *, data_dir: Path, model_dir: Path
) -> dict[str, tuple[int, int]]:
    """Trains and tests a model; returns the counts by class that `summary` wants."""
    done = model_dir / "counts.json"
    if not done.is_file():
        _run(
            "run.py",
            f"--gin_file={recipe}",
            f"--data_dir={data_dir}",
            f"--model_dir={model_dir}",
            *(f"--gin_bindings={binding}" for binding in bindings),
        )
        done.write_text(json.dumps(_counts(model_dir / "results")) + "\n")
    return json.loads(done.read_text())


def _counts(results_dir: Path) -> dict[str, tuple[int, int]]:
    """By class, the videos of the last test, and how many of them were recognised."""
    from tl_tf import scores  # TensorFlow, which takes seconds

    last = max(
        results_dir.glob("test-[0-9]*.json"), key=lambda p: int(p.stem.split("-")[1])
    )
    merge = json.loads(last.read_text())["views"]["merge"]
    views = scores.ViewScores.load(last.with_suffix(".scores.npz"))
    accuracy = scores.evaluate(views, metric="top_k", merge=merge).accuracy
    return {
        name: (int(videos), round(share * videos))
        for name, share, videos in zip(
            views.classes.tolist(), accuracy.per_class, accuracy.positives, strict=True
        )
        if videos
    }


def _line(name: str, figures: Mapping[str, Any]) -> str:
    by_fold = " ".join(f"{value:.3f}" for value in figures["by_fold"])
    by_class = ", ".join(f"{k} {v:.3f}" for k, v in figures["by_class"].items())
    return (
        f"{name:32} {by_fold}  {figures['mean']:.3f} ± {figures['spread']:.3f}"
        f"  (of all videos {figures['pooled']:.3f}; {by_class})"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds, trains, tests; prints accuracies and writes <recipe>-seed<n>.json."""
    args = _parser().parse_args(arguments)
    for recipe in args.recipes:
        config.check([recipe], args.gin_bindings)
    source, out_dir = Path(args.videos_dir), Path(args.out_dir).resolve()
    group_of = None
    if args.groups:
        rows = json.loads(Path(args.groups).read_text(encoding="utf-8"))
        group_of = {row["file"]: row["group"] for row in rows}
    files = [p.relative_to(source).as_posix() for p in source.glob("*/[!.]*")]
    fold_of = fold_of_files(files, args.folds, group_of, stratify=args.stratify)
    data_dirs = [out_dir / f"fold{k}" for k in range(args.folds)]
    for k, data_dir in enumerate(data_dirs):
        if (data_dir / "folder" / "dataset_info.json").is_file():
            continue
        videos_dir = data_dir / "videos"
        link_videos(fold_of, test_fold=k, source=source, to=videos_dir)
        _run(
            *("-m", "data.build", "folder"),
            f"--videos_dir={videos_dir}",
            f"--data_dir={data_dir}",
            f"--fps={args.fps}",
            f"--short_side={args.short_side}",
        )
    for recipe in args.recipes:
        for seed in args.seeds:
            name = f"{Path(recipe).stem}-seed{seed}"
            bindings = [*args.gin_bindings, f"SEED = {seed}"]
            counts = [
                _test(recipe, bindings, data_dir=d, model_dir=d / name)
                for d in data_dirs
            ]
            found = summary(counts)
            (out_dir / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(_line(name, found), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folds")
    add = parser.add_argument
    add("--videos_dir", required=True, help="holds <class>/x.mp4")
    add("--groups", help="a JSON list of {file, group}")
    add("--recipes", nargs="+", required=True, help="each is trained on each fold")
    add("--out_dir", required=True, help="for data, runs and figures")
    add("--seeds", nargs="+", type=int, default=[0], help="of the training")
    add("--folds", type=int, default=5)
    add(
        "--stratify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="line up groups of the same classes apart (default: yes)",
    )
    add("--fps", type=float, default=12.0, help="of the frames that are kept")
    add("--short_side", type=int, default=128, help="of the frames, in pixels")
    add("--gin_bindings", action="append", default=[], help="of every run")
    return parser


if __name__ == "__main__":
    main()
