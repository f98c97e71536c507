"""From a command to the end of the first training step, beside other libraries.

  python -m benchmarks.startup [--rounds=9] [--contenders='ours;timm'] [--json=FILE]

All train a ViT S/32 on the same folder of JPEG files, made here; the clock runs from
the start of a process to the line that tells of its first step.  Ours is run.py with a
recipe of this repository.  Every process finds byte code in place, as after an
installation by pip, and torch.compile what it compiled before.

A second table tells where our time goes.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import measure

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP = "step 1"  # in the line that every contender prints
NUM_CLASSES, IMAGES_PER_CLASS = 4, 16
BASE = "TensorFlow imported"
OURS = {"ours": "False", "ours, XLA": "True"}  # train.jit_compile
RIVALS = {  # the package that each needs, and its command, but for the images
    "Model Garden": ("official", "start_model_garden", []),
    "timm": ("timm", "start_timm", []),
    "timm, compiled": ("timm", "start_timm", ["compile"]),
}
CONTENDERS = (BASE, *OURS, *RIVALS)


def command(name: str, folder: Path, *, image_px: int, batch_size: int) -> list[str]:
    """What follows Python's name in a contender's command.

    Raises:
      ImportError: its package is missing.
    """
    if name == BASE:
        return ["-c", "import tensorflow"]
    if name in OURS:
        return ["run.py", *_flags(folder, image_px, batch_size, OURS[name])]
    package, module, options = RIVALS[name]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"there is no module {package}")
    images = str(folder / "jpegs" / "train")
    sizes = [str(batch_size), str(image_px)]
    return ["-m", f"benchmarks.rivals.{module}", images, *sizes, *options]


def launcher(
    name: str, folder: Path, image_px: int, batch_size: int
) -> Callable[[], measure.Seconds]:
    """A function that runs a contender up to its first step, or its end."""
    arguments = command(name, folder, image_px=image_px, batch_size=batch_size)

    def launch() -> measure.Seconds:
        start = time.perf_counter()
        with _process(arguments, folder) as process:
            is_trained = any(FIRST_STEP in line for line in process.stdout)
            seconds = time.perf_counter() - start
            if is_trained:
                process.kill()
            elif process.wait():
                raise RuntimeError(f"{name}: {process.stderr.read()[-2000:]}")
        return measure.Seconds(seconds)

    return launch


def stages(folder: Path, *, image_px: int, batch_size: int, rounds: int) -> dict:
    """Median seconds of each stage of ours, after a round that does not count."""
    flags = _flags(folder, image_px, batch_size, "False", total_steps=2)
    found = []
    for _ in range(rounds + 1):
        start = ["-m", "benchmarks.startup_stages", repr(time.time())]
        with _process([*start, *flags], folder) as process:
            output, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(errors[-2000:])
        found.append(json.loads(output.splitlines()[-1]))
    return {key: statistics.median(f[key] for f in found[1:]) for key in found[0]}


def make_images(folder: Path) -> None:
    """Writes a small folder of class folders of textured JPEG files."""
    random = np.random.default_rng(0)
    for k in range(NUM_CLASSES):
        class_folder = folder / "jpegs" / "train" / f"class {k}"
        class_folder.mkdir(parents=True)
        for i in range(IMAGES_PER_CLASS):
            pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC)
            image.save(class_folder / f"{i}.jpg", quality=90)


def report(results: dict[str, measure.Result], shares: dict[str, float]) -> str:
    """Both tables."""
    lines = ["contender               time, TensorFlow's import = 1   ours is as fast"]
    for name, result in results.items():
        of_base = measure.speedup(results[BASE], result) if BASE in results else ""
        of_ours = measure.speedup(results["ours"], result) if "ours" in results else ""
        lines.append(f"{name:22}  {of_base!s:28}  {of_ours!s}")
    total = sum(shares.values())
    lines += ["", "stage of ours                  share"]
    lines += [f"{name:28}  {value / total:6.1%}" for name, value in shares.items()]
    return "\n".join(lines)


def _flags(
    folder: Path, image_px: int, batch_size: int, jit_compile: str, total_steps: int = 1
) -> list[str]:
    bindings = [
        "image_dataset.dataset = 'jpegs'",
        "warm_start.is_required = False",
        f"IMAGE_PX = {image_px}",
        f"BATCH_SIZE = {batch_size}",
        f"TOTAL_STEPS = {total_steps}",
        "train.steps_per_loop = 1",
        f"train.jit_compile = {jit_compile}",
        "build_schedule.warmup_steps = 0",
    ]
    return [
        "--gin_file=gin/imagenet_ft384_vit_s32.gin",
        "--mode=train",
        f"--data_dir={folder}",
        f"--model_dir={folder / 'run'}",
        *(f"--gin_bindings={binding}" for binding in bindings),
    ]


def _process(arguments: list[str], folder: Path) -> subprocess.Popen:
    shutil.rmtree(folder / "run", ignore_errors=True)
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment.setdefault("PYTHONPYCACHEPREFIX", str(folder / "bytecode"))
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=measure.ROUNDS)
    parser.add_argument("--contenders", default=";".join(CONTENDERS), help="by ';'")
    parser.add_argument("--image_px", type=int, default=384)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--json", help="file to write")
    flags = parser.parse_args(argv)
    sizes = {"image_px": flags.image_px, "batch_size": flags.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_images(folder)
        contenders = [
            measure.Contender(name, launcher, (name, folder, *sizes.values()))
            for name in flags.contenders.split(";")
        ]
        results = measure.interleave(contenders, rounds=flags.rounds, warm_up=1)
        shares = stages(folder, rounds=min(flags.rounds, 3), **sizes)
    print(report(results, shares))
    if flags.json:
        content = {"seconds": {n: r.seconds for n, r in results.items()}}
        measure.write_json(flags.json, content | {"stages": shares})


if __name__ == "__main__":
    main()
