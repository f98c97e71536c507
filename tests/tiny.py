"""Recipes shrunk by bindings alone, and the made-up data sets they run on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data import build
from tl_tf import config

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("gin/*.gin"))
QUICKSTART = "gin/quickstart.gin"
TRAIN_VIDEOS, TEST_VIDEOS, NUM_SHARDS = 12, 6, 2
TRAIN_IMAGES, TEST_IMAGES = 6, 3  # of each class
IMAGE_CLASSES = ("bird", "cat")

# The model wants 32 pixels, and the Charades recipes scale down to 0.9 first.
SHRINK_ALL = (
    "TOTAL_STEPS = 2",
    "BATCH_SIZE = 2",
    "build_schedule.warmup_steps = 1",
)
SHRINK = (
    *SHRINK_ALL,
    "DATASET = 'synthetic'",
    "NUM_FRAMES = 3",
    "SHORT_SIDE_PX = 38",
    "TRAIN_CROP_PX = 32",
    "EVAL_CROP_PX = 36",
    "eval/clip_dataset.batch_size = 4",
    "build_x2p1d.width = 0.1",
    "build_x2p1d.num_heads = 1",  # of 43 channels
    "build_x2p1d.stage_depths = (1, 1, 1, 1)",
    "build_x2p1d.module_blocks = (0,)",
)


# Grids of 8 x 8, which the pools of Table VI divide.
SHRINK_IMAGES = (
    *SHRINK_ALL,
    "IMAGE_PX = 32",
    "image_dataset.dataset = 'tiny_images'",
    "train/image_dataset.split = 'train'",
    "eval/image_dataset.split = 'test'",
    "eval/image_dataset.batch_size = 4",
    "build_vit.patch_px = 4",
    "build_vit.hidden_size = 16",
    "build_vit.num_heads = 2",
    "build_vit.mlp_size = 24",
    "build_vit.depth = 3",
    "build_vit.extra_blocks = 0",
)


def is_of_images(recipe: str) -> bool:
    """Whether a recipe trains on images."""
    return Path(recipe).name.startswith(("imagenet", "cifar"))


def shrink(recipe: str) -> tuple[str, ...]:
    """The bindings that shrink a recipe."""
    if not is_of_images(recipe):
        return SHRINK
    bindings = list(SHRINK_IMAGES)
    text = "\n".join((ROOT / file).read_text() for file in _files(recipe))
    for name, binding in (
        ("INIT_FROM", "warm_start.is_required = False"),
        ("insert_before_block", "build_vit.insert_before_block = 1"),
        ("((8, 8), (2, 2))", "build_vit.pool_before_blocks = (1, 2)"),
        ("((4, 4),)", "build_vit.pool_before_blocks = (1,)"),
    ):
        if name in text:
            bindings.append(binding)
    return tuple(bindings)


def _files(recipe: str) -> list[str]:
    """A recipe and all that it includes."""
    included = re.findall(r"^include '(.*)'", (ROOT / recipe).read_text(), re.M)
    return [recipe, *(file for one in included for file in _files(one))]


def build_images(data_dir: Path) -> None:
    """Writes a folder of class folders of random JPEG files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for name in IMAGE_CLASSES:
            folder = data_dir / "tiny_images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (37, 45, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")


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
    config.check([recipe], [*shrink(recipe), *bindings])
    config.load([recipe], [*shrink(recipe), *bindings])


def command(recipe: str, *bindings: str, **flags: Path | str) -> list[str]:
    """The command that runs a recipe, shrunk, in a process of its own."""
    return [
        sys.executable,
        str(ROOT / "run.py"),
        f"--gin_file={recipe}",
        *(f"--gin_bindings={binding}" for binding in (*shrink(recipe), *bindings)),
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
