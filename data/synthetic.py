"""Made-up videos of moving objects, laid out like Charades and read by its reader.

Five classes that only motion tells apart: left, right, up, down, and to and fro.  An
object's place, size, angle, colour, shape and texture are drawn without regard to its
class, uniformly, and what leaves on one side enters on the other.  So at any moment an
object that moves left looks like one that moves right: a single frame says nothing
about the class, and a model that scores well has used time.

A video shows one object over a moving background.  Along each axis it does nothing or
one thing, so a video has none to two labels; in one of ten the object stands still.
"""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import numpy as np

from data import charades, manifest

LAYOUT = "The synthetic dataset makes its own files."
CLASSES = (
    "moving left",
    "moving right",
    "swaying sideways",
    "moving up",
    "moving down",
)
SOURCE_FPS = 24
_ID_LETTERS = {"train": "A", "test": "B"}

# Of the picture's width, each second, along both axes; one to and fro takes a second.
_SLOWEST, _FASTEST = 0.6, 0.8
_SMALLEST, _LARGEST = 0.4, 0.9  # diameter over the picture's short side

default_videos_dir = charades.default_videos_dir


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is made: how many videos of which size, from which seed."""

    name: ClassVar[str] = "synthetic"
    train_videos: int = manifest.option("videos to make for training", 512)
    test_videos: int = manifest.option("videos to make for the test", 96)
    height: int = manifest.option("in pixels", 64)
    width: int = manifest.option("in pixels", 80)
    video_seconds: float = manifest.option("length of each video", 2.75)
    seed: int = manifest.option("another one makes other videos", 0)

    def __post_init__(self):
        for name in ("train_videos", "test_videos"):
            if not 1 <= getattr(self, name) <= 9999:
                raise ValueError(
                    f"synthetic: {name} must be in 1..9999, got {getattr(self, name)}."
                )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 16 or value % 2:
                raise ValueError(
                    f"synthetic: {name} must be even (H.264) and at least 16, got"
                    f" {value}."
                )
        if not 0.5 <= self.video_seconds <= 600:
            raise ValueError(
                "synthetic: video_seconds must be in 0.5..600, got"
                f" {self.video_seconds:g}."
            )
        if self.seed < 0:
            raise ValueError(f"synthetic: seed must be >= 0, got {self.seed}.")


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object: what it does, and what it looks like.

    Attributes:
      actions: for x and y, the class, or None to stay.
      start: x and y in widths and heights of the picture, in 0..1.
      speeds: widths and heights a second.
      phases: of swaying, in 0..1.
      size: in 0..1, from the smallest to the largest.
      angle: in turns.
      shape: index into the shapes.
      color: red, green and blue, in 0..1.
      stripes: of the texture, waves across and along.
    """

    actions: tuple[int | None, int | None]
    start: np.ndarray
    speeds: np.ndarray
    phases: np.ndarray
    size: float
    angle: float
    shape: int
    color: np.ndarray
    stripes: np.ndarray

    def places(self, seconds: np.ndarray) -> np.ndarray:
        """x and y at each moment, in 0..1.  -> [T, 2]"""
        places = np.tile(self.start, (len(seconds), 1))  # [T, 2]
        for axis, action in enumerate(self.actions):
            if action is not None:
                to_and_fro = np.abs((seconds + self.phases[axis]) % 1 - 0.5)
                travelled = (-seconds, seconds, to_and_fro)[action % 3]
                places[:, axis] += self.speeds[axis] * travelled
        return places % 1


def make(
    settings: Settings,
    folder: Path,
    run: Callable[[Callable, Iterable[dict]], None],
) -> charades.Settings:
    """Makes the videos and their annotations in `folder`, unless they are there.

    Args:
      settings: what to make.
      folder: emptied first when it holds something else.
      run: calls a function once with each of some keyword arguments, in any order.

    Returns:
      Where they are, for `read`.
    """
    made = charades.Settings(annotations_dir=folder)
    done, content = folder / "settings.json", dataclasses.asdict(settings)
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == content:
        return made
    shutil.rmtree(folder, ignore_errors=True)
    videos_dir = default_videos_dir(folder)
    videos_dir.mkdir(parents=True)
    lines = [f"c{i:03d} {name}\n" for i, name in enumerate(CLASSES)]
    (folder / charades.CLASSES_FILE).write_text("".join(lines), encoding="utf-8")
    tasks = []
    for split in manifest.SPLITS:
        path = folder / f"Charades_v1_{split}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, charades.COLUMNS, restval="")
            rows.writeheader()
            for index in range(getattr(settings, f"{split}_videos")):
                video_id = f"{_ID_LETTERS[split]}{index:04d}"
                rows.writerow(_row(video_id, thing(settings, split, index), settings))
                tasks.append(
                    {
                        "path": videos_dir / f"{video_id}.mp4",
                        "settings": settings,
                        "split": split,
                        "index": index,
                    }
                )
    run(write_video, tasks)
    done.write_text(json.dumps(content), encoding="utf-8")
    return made


def read(settings: charades.Settings, splits: Sequence[str]) -> manifest.Annotations:
    """Reads what `make` made."""
    return dataclasses.replace(charades.read(settings, splits), official_videos={})


def thing(settings: Settings, split: str, index: int) -> Thing:
    """The object of one video; the same arguments give the same object."""
    rng = _rng(settings, split, index, stream=0)
    choices = [(None, 0, 1, 2), (None, 3, 4)]
    is_still = rng.random() < 0.1
    picks = rng.integers([len(axis) for axis in choices]) * (not is_still)
    return Thing(
        actions=tuple(axis[pick] for axis, pick in zip(choices, picks, strict=True)),
        start=rng.random(2),
        speeds=rng.uniform(_SLOWEST, _FASTEST, size=2)
        * (1, settings.width / settings.height),
        phases=rng.random(2),
        size=float(rng.random()),
        angle=float(rng.random()),
        shape=int(rng.integers(len(_SHAPES))),
        color=_color(rng),
        stripes=rng.uniform(3, 7, size=2),
    )


def render(settings: Settings, split: str, index: int) -> np.ndarray:
    """The frames of one video.  -> uint8 [T, H, W, 3]"""
    num_frames = round(settings.video_seconds * SOURCE_FPS)
    seconds = np.arange(num_frames) / SOURCE_FPS
    rng = _rng(settings, split, index, stream=1)
    picture = _background(rng, seconds, settings.height, settings.width)
    _draw(picture, thing(settings, split, index), seconds)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def write_video(path: Path, settings: Settings, split: str, index: int) -> None:
    """Renders one video into an H.264 file."""
    import av  # here: what the command line needs of this module is numpy alone

    if "libx264" not in av.codecs_available:
        raise ValueError(
            "synthetic: this PyAV has no H.264 encoder (libx264). Install the wheel"
            " from PyPI: pip install --only-binary=av av"
        )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(SOURCE_FPS))
        stream.width, stream.height = settings.width, settings.height
        stream.pix_fmt = "yuv420p"
        # The same bytes each time: x264's choice of B-frames was seen to vary with
        # stray memory (zerolatency uses none), and threads divide the picture.
        stream.thread_count = 1
        stream.options = {"crf": "16", "preset": "veryfast", "tune": "zerolatency"}
        for pixels in render(settings, split, index):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _row(video_id: str, made: Thing, settings: Settings) -> dict[str, str]:
    end = f"{settings.video_seconds:.2f}"
    actions = [
        f"c{action:03d} 0.00 {end}" for action in made.actions if action is not None
    ]
    return {
        "id": video_id,
        "script": "One object over a moving background.",
        "actions": ";".join(actions),
        "length": end,
    }


def _rng(settings: Settings, split: str, index: int, stream: int):
    return np.random.default_rng(
        [settings.seed, manifest.SPLITS.index(split), index, stream]
    )


def _color(rng) -> np.ndarray:
    """A strong colour: one channel bright, one dark, one between.  -> [3]"""
    return rng.permutation([1.0, 0.05, rng.uniform(0.05, 1.0)])


def _background(rng, seconds: np.ndarray, height: int, width: int) -> np.ndarray:
    """A dim texture of a few waves that drifts any way.  -> [T, H, W, 3]"""
    waves = rng.integers(-4, 5, size=(5, 2))  # whole numbers: it wraps around
    drift = rng.uniform(-0.12, 0.12, size=2)
    strength = rng.uniform(0.01, 0.05, size=(5, 3))
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    place = np.tensordot(waves, [x, y], axes=1) + rng.random((5, 1, 1))  # [5, H, W]
    moment = seconds[:, None] * (waves @ drift)  # [T, 5]
    # sin(place + moment), written so that its parts are computed once each.
    place, moment = 2 * np.pi * place, 2 * np.pi * moment
    parts = np.concatenate([np.sin(place), np.cos(place)])  # [10, H, W]
    parts = parts[..., None] * np.tile(strength, (2, 1))[:, None, None]  # [10, H, W, 3]
    weights = np.concatenate([np.cos(moment), np.sin(moment)], axis=1)  # [T, 10]
    return 0.45 + np.tensordot(weights, parts, axes=1)


def _draw(picture: np.ndarray, made: Thing, seconds: np.ndarray) -> None:
    """Draws an object into the pictures [T, H, W, 3], in place."""
    height, width = picture.shape[1:3]
    left, top = (place[:, None, None] for place in made.places(seconds).T)
    # Nearest copy of the object, so that it leaves on one side and enters on the other.
    x = (np.arange(width) - left * width + width / 2) % width - width / 2
    y = (np.arange(height)[:, None] - top * height + height / 2) % height - height / 2
    diameter = _SMALLEST * (_LARGEST / _SMALLEST) ** made.size * min(height, width)
    cos, sin = np.cos(2 * np.pi * made.angle), np.sin(2 * np.pi * made.angle)
    u = (x * cos + y * sin) / (diameter / 2)  # [T, H, W], -1..1 over the object
    v = (y * cos - x * sin) / (diameter / 2)
    inside = _SHAPES[made.shape](u, v)
    mask = np.clip(inside * diameter / 2 + 0.5, 0, 1)[..., None]  # soft over one pixel
    across, along = made.stripes
    texture = 0.8 + 0.2 * np.sin(across * u) * np.sin(along * v + 1)  # [T, H, W]
    picture += mask * (texture[..., None] * made.color - picture)


def _half_disc(u, v):
    return np.minimum(1 - np.hypot(u, v), v + 0.1)


def _triangle(u, v):
    return np.minimum((0.7 - v) * 0.9, v + 0.9 - 2.2 * np.abs(u))


def _corner(u, v):
    box = np.minimum(0.75 - np.abs(u), 0.75 - np.abs(v))
    return np.minimum(box, np.maximum(-0.1 - u, v - 0.1))


def _drop(u, v):
    return np.maximum(0.6 - np.hypot(u, v + 0.35), _spike(u, v))


def _spike(u, v):
    return np.minimum(v + 0.35, 0.95 - v - 1.9 * np.abs(u)) * 0.7


_SHAPES = (_half_disc, _triangle, _corner, _drop)
