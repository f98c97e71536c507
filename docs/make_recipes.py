"""docs/RECIPES.md: every recipe, out of the gin files and of what its model costs.

    python -m docs.make_recipes            writes the page
    python -m docs.make_recipes --measure  counts models that are new or changed before
                                           (all of them: a quarter of an hour, 6 GB)

Costs are kept in tests/golden/recipes.json, with a checksum of the bindings that make
the model, so that the tests notice when one is out of date.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tl_tf import startup

startup.quiet_tensorflow()

import gin  # noqa: E402
import tf_keras  # noqa: E402

from tl_tf import config, cost, experiment, memory  # noqa: E402, F401
from tl_tf.inputs import image, video  # noqa: E402, F401
from tl_tf.models import differences, vit, vivit, x2p1d  # noqa: E402, F401

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "RECIPES.md"
GOLDEN = ROOT / "tests" / "golden" / "recipes.json"
COMMAND = "python -m docs.make_recipes"

BUILDERS = ("build_vit", "build_vivit", "build_x2p1d", "build_on_differences")
DEVICES_GB = (16, 80)  # a core of a TPU v3, a large GPU
VARIABLES = {"momentum": 3, "adamw": 4}  # weight, gradient and what the optimizer keeps

# Recipes by the beginning of their names: what they are of, and where the data is from.
GROUPS = {
    "quickstart": (
        "Made-up videos",
        "`run.py` makes them where they are missing: 608 videos, 20 MB, some seconds.",
    ),
    "folder": (
        "Your own videos",
        "A folder of class folders. Small models, from scratch, on a CPU.\n\n"
        "```\npython -m data.build folder --videos_dir=my_videos --name=mine"
        " --data_dir=datasets --short_side=80\n```\n\n"
        "and `--gin_bindings=\"DATASET = 'mine'\"`: [the guide](GUIDE.md).",
    ),
    "charades": (
        "Charades",
        "Annotations and videos, 13 GB at 480p, are on the authors' page,"
        " prior.allenai.org/projects/charades.\n\n"
        "```\npython -m data.build charades --annotations_dir=Charades"
        " --data_dir=datasets\n```",
    ),
    "avid": (
        "AViD",
        "The lists are in the authors' repository (piergiaj/AViD on GitHub), which says"
        " where the videos are.\n\n"
        "```\npython -m data.build avid --annotations_dir=AViD/dataset"
        " --videos_dir=AViD/videos --data_dir=datasets\n```",
    ),
    "kinetics400": (
        "Kinetics-400",
        "Lists and archives of the clips are kept by the CVDF"
        " (cvdfoundation/kinetics-dataset on GitHub). They start from an image model:"
        " `INIT_FROM`.\n\n"
        "```\npython -m data.build kinetics --version=400 --fps=25"
        " --annotations_dir=k400 --videos_dir=k400/videos --data_dir=datasets\n```",
    ),
    "kinetics600": (
        "Kinetics-600",
        "As Kinetics-400.\n\n"
        "```\npython -m data.build kinetics --version=600 --fps=25"
        " --annotations_dir=k600 --videos_dir=k600/videos --data_dir=datasets\n```",
    ),
    "cifar10": (
        "CIFAR-10",
        "From TFDS, with `--gin_bindings=\"DATASET = 'tfds:cifar10'\"`; or a folder,"
        " `datasets/cifar10/<split>/<class>/*.png`.\n\n"
        '```\npython -c "import tensorflow_datasets as t;'
        " t.builder('cifar10', data_dir='datasets').download_and_prepare()\"\n```",
    ),
    "imagenet_ft": (
        "ImageNet, fine-tuned",
        "The archives of ImageNet-1k are on image-net.org, behind a registration; TFDS"
        " prepares them (`tfds build imagenet2012`), or they are folders. The recipes"
        " start from `INIT_FROM`: an `.npz` of Scenic or vision_transformer, or a run.",
    ),
    "imagenet_": ("ImageNet from scratch", "As above, without weights to start from."),
    "imagenet21k": (
        "ImageNet-21k",
        "A folder, `datasets/imagenet21k/train/<wnid>/*.JPEG`, of the archives of"
        " image-net.org.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Head:
    """The comment at the top of a recipe.

    Attributes:
      title: what it is.
      row: of docs/RESULTS.md.
      expect: what comes out, and what was published.
    """

    title: str
    row: str
    expect: str

    @classmethod
    def read(cls, recipe: str) -> "Head":
        """Reads gin/<name>.gin; a ValueError says what it lacks."""
        lines = (ROOT / recipe).read_text(encoding="utf-8").splitlines()
        head = []
        for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]:
            head.append(line.removeprefix("#").strip())
        text = " ".join(head)
        found = re.fullmatch(
            r"(.*?)\.?\s+docs/RESULTS\.md row (\w+)\..*?Expect:\s+(.*)", text
        )
        if not found:
            raise ValueError(f"{recipe}: its head has no title, row or Expect.")
        return cls(*found.groups())


def names() -> list[str]:
    """Every recipe, from the repository's root."""
    return sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("gin/*.gin"))


def facts(recipe: str) -> dict[str, Any]:
    """What the gin files say; leaves the recipe loaded."""
    gin.clear_config()
    config.load([recipe], [])
    inspected = gin.get_bindings("inspect")
    trained = gin.get_bindings("train")
    is_video = len(inspected["input_shape"]) == 4
    with gin.config_scope("train"):
        bound = gin.get_bindings("clip_dataset" if is_video else "image_dataset")
    side = bound["crop_px"] if is_video else bound["image_px"]
    optimizer = gin.get_bindings("build_optimizer")
    model = {name: _bindings(name) for name in BUILDERS if _bindings(name)}
    model["inspect"] = [
        inspected["build_model"].__name__,
        inspected["num_classes"],
        inspected["input_shape"],
        side,
    ]
    return {
        "model": hashlib.sha256(
            json.dumps(model, sort_keys=True, default=_name).encode()
        ).hexdigest()[:12],
        "build_model": inspected["build_model"],
        "num_classes": inspected["num_classes"],
        "input_shape": list(inspected["input_shape"]),
        "train_shape": [*inspected["input_shape"][:-3], side, side, 3],
        "views": inspected.get("num_clips", 1) * inspected.get("num_crops", 1),
        "batch_size": trained["batch_size"],
        "total_steps": trained["total_steps"],
        "copies": VARIABLES[optimizer.get("kind", "momentum")]
        + (optimizer.get("ema_decay") is not None),
    }


def measure(found: dict[str, Any]) -> dict[str, Any]:
    """Builds the model of a recipe that is loaded, and counts it."""
    model = found["build_model"](found["num_classes"])
    total = cost.count(model, [1, *found["input_shape"]]).total
    activations = memory.estimate(model, [1, *found["train_shape"]])
    return {
        "model": found["model"],
        "gflops": round(total.xla_flops / 2e9, 4),
        "profiler_gflops": round(total.flops / 1e9, 4),
        "parameters": total.parameters,
        "weight_bytes": activations.weight_bytes,
        "training_bytes": activations.training_bytes,
    }


def measure_all(recipes: Iterable[str]) -> None:
    """Counts the models that tests/golden/recipes.json lacks, and writes them there."""
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    by_model = {costs["model"]: costs for costs in golden.values()}
    for recipe in recipes:
        found = facts(recipe)
        if found["model"] not in by_model:
            print(recipe, flush=True)
            by_model[found["model"]] = measure(found)
            tf_keras.backend.clear_session()
            gc.collect()  # a large model takes gigabytes
        golden[recipe] = by_model[found["model"]]
        lines = [f" {json.dumps(k)}: {json.dumps(golden[k])}" for k in sorted(golden)]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def devices(found: dict[str, Any], costs: dict[str, Any], gigabytes: int) -> str:
    """How many devices hold a step, each with a whole model: as --mode=inspect says."""
    free = gigabytes * 1e9 - found["copies"] * costs["weight_bytes"]
    at_once = int(free // (memory.HEADROOM * costs["training_bytes"]))
    return f"{-(-found['batch_size'] // at_once)}" if at_once >= 1 else "no"


def row(recipe: str, head: Head, found: dict, costs: dict | None) -> str:
    """A row of the Markdown table; without costs, of a model that is not counted."""
    expect = head.expect.removeprefix("not run here").strip("; ").removesuffix(".")
    expect = re.sub(r"^\(16 hours on 32 TPU v3\); ", "", expect)
    gflops = parameters = gigabytes = "–"
    counts = ["–"] * len(DEVICES_GB)
    if costs is not None:
        gflops = f"{_shown(costs['gflops'])} / {_shown(costs['profiler_gflops'])}"
        parameters = f"{costs['parameters'] / 1e6:.3g}"
        variables = found["copies"] * costs["weight_bytes"] / 1e9
        gigabytes = f"{variables:.2g} + {costs['training_bytes'] / 1e9:.2g}"
        counts = [devices(found, costs, size) for size in DEVICES_GB]
    cells = [
        f"[`{Path(recipe).stem}`](../{recipe})",
        head.row,
        head.title.partition(", ")[2] or head.title,
        expect,
        gflops,
        f"{found['views']}",
        parameters,
        f"{found['batch_size']} × {found['total_steps']:,}",
        gigabytes,
        *counts,
    ]
    return "| " + " | ".join(cells) + " |"


INTRODUCTION = """\
# Recipes

<!-- Written by: {command} -->
Each of the {count} files in `gin/` is one run: `python run.py --gin_file=gin/NAME.gin`.
`{command}` makes this page out of the gin files and their models.

- **Published** is the paper's figure for this very configuration, with its table. No
  row with such a figure was trained here, and the paper's models are pre-trained on
  JFT-300M, which is not public: expect less from public weights. The second column is
  the row of [RESULTS.md](RESULTS.md), which says what was trained here, and how.
- **GFLOPs** of one view: one per multiply-add as in Tables I to IX / two as in Tables
  XI to XIII. `--mode=inspect` shows them stage by stage.
- **Views** of an example whose scores are merged in evaluation: a video costs GFLOPs ×
  views.
- **M**: 10⁶ trained parameters. **Batch × steps**: the whole training.
- **GB** in training, in float32: weights, gradients and optimizer, which every device
  holds, + the activations of one clip or image, estimated from the graph.
  mixed_bfloat16, the default on a TPU, halves most of the latter.
- **16 GB, 80 GB**: how many devices of that size hold a step of the whole batch, with
  30 % more for activations than estimated; "no" holds not even one example. Fewer do
  with `train.accumulation_steps`, `build_….recompute = True` or a smaller `BATCH_SIZE`
  ([what that costs](PERFORMANCE.md)).
- **–** is not counted yet: `{command} --measure` does.
"""
HEADER = (
    "| recipe | row | what | expect or published | GFLOPs | views | M | batch × steps |"
    " GB | 16 GB | 80 GB |\n|" + "---|" * 11
)


def page() -> str:
    """The text of docs/RECIPES.md.

    Raises:
      ValueError: the model of a recipe is no longer the one that was counted.
    """
    golden = json.loads(GOLDEN.read_text())
    groups = {prefix: [] for prefix in GROUPS}
    for recipe in names():
        found, costs = facts(recipe), golden.get(recipe)
        if costs and costs["model"] != found["model"]:
            raise ValueError(
                f"{recipe}: its model is another than {GOLDEN.name} counts. Count it:"
                f" {COMMAND} --measure"
            )
        prefix = max(
            (p for p in GROUPS if Path(recipe).name.startswith(p)), key=len, default=""
        )
        groups[prefix].append(row(recipe, Head.read(recipe), found, costs))
    gin.clear_config()
    parts = [INTRODUCTION.format(command=COMMAND, count=len(names()))]
    for prefix, rows in groups.items():
        title, source = GROUPS[prefix]
        parts.append("\n".join([f"## {title}\n\n{source}\n\n{HEADER}", *rows, ""]))
    return "\n".join(parts)


def _bindings(name: str) -> dict[str, Any]:
    return gin.get_bindings(name)


def _name(value: Any) -> str:
    return getattr(value, "__name__", repr(value))


def _shown(gflops: float) -> str:
    return f"{gflops:,.0f}" if gflops >= 1000 else f"{gflops:.3g}"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="count models first")
    if parser.parse_args().measure:
        measure_all(names())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
