"""Recipes shrunk by bindings alone, and the made-up data sets they run on."""

import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import gin
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.core.util import event_pb2

from data import build
from tests import shards
from tl_tf import config

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("gin/*.gin"))
QUICKSTART = "gin/quickstart.gin"
TRAIN_VIDEOS, TEST_VIDEOS, NUM_SHARDS = 12, 6, 2
TRAIN_IMAGES, TEST_IMAGES = 6, 3  # of each class
IMAGE_CLASSES = ("bird", "cat")

SHRINK_ALL = (
    "TOTAL_STEPS = 2",
    "BATCH_SIZE = 2",
    "build_schedule.warmup_steps = 1",
)
# The model wants 32 pixels, and a recipe scales down to 0.84 first.
SHRINK_VIDEOS = (
    *SHRINK_ALL,
    "SHORT_SIDE_PX = 39",
    "TRAIN_CROP_PX = 32",
    "eval/clip_dataset.batch_size = 4",
)
SHRINK_X2P1D = (
    "NUM_FRAMES = 3",
    "FRAME_STRIDE = 2",
    "EVAL_CLIPS = 2",
    "EVAL_CROP_PX = 36",
    "build_x2p1d.width = 0.1",
    "build_x2p1d.num_heads = 1",  # of 43 channels
    "build_x2p1d.stage_depths = (1, 1, 1, 1)",
    "build_x2p1d.module_blocks = (0,)",
)
SHRINK_VIVIT = (
    "NUM_FRAMES = 4",
    "EVAL_CLIPS = 2",
    "EVAL_CROPS = 3",
    "warm_start.is_required = False",
    "train.eval_every_steps = 5",
    "build_vivit.variant = 'S'",
    "build_vivit.patch_px = 8",
    "build_vivit.hidden_size = 16",
    "build_vivit.num_heads = 2",
    "build_vivit.mlp_size = 24",
    "build_vivit.depth = 2",
    "build_vivit.extra_blocks = 0",
    "build_vivit.num_tokens = 2",
)
SHRINK = (*SHRINK_VIDEOS, *SHRINK_X2P1D, "DATASET = 'synthetic'")

# Grids of 8 x 8, which the pools of Table VI divide.
SHRINK_IMAGES = (
    *SHRINK_ALL,
    "IMAGE_PX = 32",
    "image_dataset.dataset = 'tiny_images'",
    "train/image_dataset.split = 'train'",
    "eval/image_dataset.split = 'test'",
    "eval/image_dataset.batch_size = 4",
    "build_vit.variant = 'S'",
    "build_vit.patch_px = 4",
    "build_vit.hidden_size = 16",
    "build_vit.num_heads = 2",
    "build_vit.mlp_size = 24",
    "build_vit.depth = 3",
    "build_vit.extra_blocks = 0",
    "build_vit.num_tokens = 2",
)


def is_of_images(recipe: str) -> bool:
    """Whether a recipe trains on images."""
    return Path(recipe).name.startswith(("imagenet", "cifar"))


def is_of_vivit(recipe: str) -> bool:
    """Whether a recipe trains a ViViT."""
    return "_vivit" in recipe


def has_one_label(recipe: str) -> bool:
    """Whether a recipe is for videos of one class each."""
    return Path(recipe).name.startswith(("kinetics", "avid", "folder"))


def shrink(recipe: str) -> tuple[str, ...]:
    """The bindings that shrink a recipe."""
    text = "\n".join((ROOT / file).read_text() for file in _files(recipe))
    if not is_of_images(recipe):
        bindings = [*SHRINK_VIDEOS, f"DATASET = '{dataset(recipe)}'"]
        bindings += SHRINK_VIVIT if is_of_vivit(recipe) else SHRINK_X2P1D
        if has_one_label(recipe):
            bindings += [f"FPS = {shards.FPS}", "NUM_CLASSES = 3"]
        if "build_vivit.insert_before_block" in text:
            bindings.append("build_vivit.insert_before_block = 1")
        return tuple(bindings)
    bindings = list(SHRINK_IMAGES)
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


def dataset(recipe: str) -> str:
    """The made-up data set that a recipe of videos is run on."""
    return "toy" if has_one_label(recipe) else "synthetic"


def build_videos(data_dir: Path) -> None:
    """Writes data set "toy": frames of noise, one class a video."""
    rng = np.random.default_rng(1)
    size = (shards.HEIGHT, shards.WIDTH, 3)
    frames = [shards.jpeg(rng.integers(0, 256, size, np.uint8)) for _ in range(20)]
    for split, count in (("train", TRAIN_VIDEOS), ("test", TEST_VIDEOS)):
        videos = {
            f"{split}{i}": shards.Video(frames[i : i + 9], labels=[i % 3])
            for i in range(count)
        }
        shards.write_dataset(data_dir, [videos], split=split)


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


def build_data(data_dir: Path, *, num_shards: int = NUM_SHARDS) -> None:
    """Builds the synthetic data set, small."""
    build.build(
        "synthetic",
        data_dir,
        train_videos=TRAIN_VIDEOS,
        test_videos=TEST_VIDEOS,
        height=32,
        width=46,
        video_seconds=0.75,
        num_shards=num_shards,
    )


def distinct_recipes() -> list[str]:
    """Recipes, without those that shrink to the very bindings of one before."""
    first = {}
    for recipe in RECIPES:
        config.load([recipe], shrink(recipe))
        first.setdefault(gin.config_str(), recipe)
        gin.clear_config()
    return list(first.values())


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


def losses(model_dir: Path) -> dict[int, float]:
    """The training's loss by step, from TensorBoard's files."""
    found = {}
    for path in sorted((model_dir / "tensorboard").rglob("events*")):
        for raw in tf.data.TFRecordDataset(str(path)):
            event = event_pb2.Event.FromString(raw.numpy())
            for value in event.summary.value:
                if value.tag == "train/loss":
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at, below those of outgoing calls.

    One of the latter may be taken before its host listens.
    """
    found = []
    for port in random.sample(range(20_000, 32_000), 12_000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def start_hosts(
    arguments: list[str], num_hosts: int, folder: Path
) -> tuple[list[subprocess.Popen], list[Path]]:
    """Starts a process for each host on this machine; its output goes to <host>.log.

    Returns:
      The processes and the paths of their output.
    """
    workers = [f"127.0.0.1:{port}" for port in free_ports(num_hosts)]
    logs = [folder / f"{host}.log" for host in range(num_hosts)]
    hosts = []
    for index, log in enumerate(logs):
        task = {"type": "worker", "index": index}
        text = json.dumps({"cluster": {"worker": workers}, "task": task})
        hosts.append(start(arguments, log, TF_CONFIG=text))
    return hosts, logs


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
