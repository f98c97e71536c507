"""Recipes shrunk by bindings alone, and the made-up data set they run on."""

import os
import subprocess
import sys
from pathlib import Path

from data import build
from tl_tf import config

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("gin/*.gin"))
QUICKSTART = "gin/quickstart.gin"
TRAIN_VIDEOS, TEST_VIDEOS, NUM_SHARDS = 12, 6, 2

# The model wants 32 pixels, and the Charades recipes scale down to 0.9 first.
SHRINK = (
    "DATASET = 'synthetic'",
    "TOTAL_STEPS = 2",
    "BATCH_SIZE = 2",
    "NUM_FRAMES = 3",
    "SHORT_SIDE_PX = 38",
    "TRAIN_CROP_PX = 32",
    "EVAL_CROP_PX = 36",
    "eval/clip_dataset.batch_size = 4",
    "build_schedule.warmup_steps = 1",
    "build_x2p1d.width = 0.1",
    "build_x2p1d.stage_depths = (1, 1, 1, 1)",
    "build_x2p1d.module_blocks = (0,)",
)


def build_data(data_dir: Path) -> None:
    """Builds the synthetic data set, small."""
    build.build(
        "synthetic",
        data_dir,
        train_videos=TRAIN_VIDEOS,
        test_videos=TEST_VIDEOS,
        height=32,
        width=46,
        video_seconds=0.75,
        num_shards=NUM_SHARDS,
    )


def load(recipe: str, *bindings: str) -> None:
    """Checks and loads a recipe, shrunk; later bindings win."""
    config.check([recipe], [*SHRINK, *bindings])
    config.load([recipe], [*SHRINK, *bindings])


def command(recipe: str, *bindings: str, **flags: Path | str) -> list[str]:
    """The command that runs a recipe, shrunk, in a process of its own."""
    return [
        sys.executable,
        str(ROOT / "run.py"),
        f"--gin_file={recipe}",
        *(f"--gin_bindings={binding}" for binding in (*SHRINK, *bindings)),
        *(f"--{name}={value}" for name, value in flags.items()),
    ]


def start(arguments: list[str], log: Path, **environment: str) -> subprocess.Popen:
    """Starts a process whose output goes to `log`."""
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            arguments,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
