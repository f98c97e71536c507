"""Imports point one way: docs/HOUSE.md, section 1."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEVELS = {
    0: ["config", "startup", "files", "records", "stopping", "tflite"]
    + ["hparams", "inputs.resizing"],
    1: ["layers.*", "inputs.split", "inputs.clips", "inputs.augment"]
    + ["integrity", "inputs.passing"]
    + ["inputs.image_augment", "inputs.randaugment", "inputs.real_labels"]
    + ["inputs.color", "losses", "metrics", "optim", "runtime", "fewshot", "npz"]
    + ["report"]
    + ["durable", "__main__", "completion"],
    2: ["models.*", "inputs.faults", "inputs.views", "inputs.crops", "inputs.folders"]
    + ["inputs.tfds_shards", "transfer", "scores", "data_service", "best"]
    + ["visualize"],
    3: ["inputs.video", "inputs.image", "trainer", "evaluator", "summaries"]
    + ["flax_names", "timeline", "cost", "memory", "profiling"],
    4: ["checkpoint", "results", "serving"],
    5: ["session", "remerge", "model_card", "media", "scorers"]
    + ["find_lr", "dry_run", "inspection"],
    6: ["predict", "export", "token_pictures", "evaluating"],
    7: ["demo", "training"],
    8: ["experiment"],
}
DATA_ORDER = ["manifest", "frames", "isolated", "shards", "summary"]
FILES = sorted([*ROOT.glob("tl_tf/**/*.py"), *ROOT.glob("data/*.py")])
FILES = [path for path in FILES if path.name != "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def level_of(name: str) -> int:
    inner = name.removeprefix("tl_tf.")
    for level, patterns in LEVELS.items():
        if inner in patterns or inner.split(".")[0] + ".*" in patterns:
            return level
    raise AssertionError(f"{name}: give it a level here and in docs/HOUSE.md.")


def imports_of(path: Path) -> set[str]:
    """Full names of the project's own modules that a file imports, anywhere in it."""
    known = {name_of(p) for p in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & known


def top_level_packages(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    name = name_of(path)
    for other in imports_of(path):
        if name.startswith("tl_tf."):
            if name == "tl_tf.experiment":
                continue  # the composition root may know everything
            if name == "tl_tf.media" and other in ("data.frames", "data.reading"):
                continue  # files are decoded as the builders do it
            assert other.startswith("tl_tf."), f"{name} imports {other}"
            siblings = {"layers", "models"} if level_of(name) == 1 else set()
            same_room = name.split(".")[1] == other.split(".")[1] == "layers"
            allowed = level_of(other) < level_of(name) or (siblings and same_room)
            assert allowed, f"{name} imports {other}, which is not below it"
        else:
            assert not other.startswith("tl_tf.") or other in (
                "tl_tf.files",
                "tl_tf.records",
                "tl_tf.startup",
                "tl_tf.integrity",
            ), f"{name} imports {other}: data/ may know no more than this of tl_tf/"


def test_beam_is_imported_in_one_place():
    users = {p.name for p in FILES if "apache_beam" in top_level_packages(p)}
    assert users == {"beam_build.py"}


def test_nobody_imports_another_keras():
    for path in [*FILES, *ROOT.glob("tests/**/*.py"), ROOT / "run.py"]:
        assert "keras" not in top_level_packages(path), path


def test_the_gin_folder_does_not_hide_the_library():
    assert not list(ROOT.glob("gin/**/*.py"))


def test_no_layer_class_is_configurable():
    for path in ROOT.glob("tl_tf/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                decorators = [ast.unparse(d) for d in node.decorator_list]
                assert not any("gin" in d for d in decorators), f"{path}: {node.name}"
