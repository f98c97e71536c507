"""The package as others use it: what it exports, what it depends on, its examples."""

import importlib
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import gin
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tl_tf
from tests import shards
from tl_tf import build_vit, config, experiment, save_npz  # noqa: F401

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(lines) -> dict[str, Requirement]:
    lines = [line.split("#")[0].strip() for line in lines]
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(one.name): one for one in found}


def pins(name: str) -> dict[str, Requirement]:
    return requirements((ROOT / name).read_text().splitlines())


@pytest.mark.parametrize(
    "file, ranges",
    [("requirements.txt", PROJECT["dependencies"])]
    + [(f"requirements-{extra}.txt", EXTRAS[extra]) for extra in EXTRAS],
)
def test_the_tested_versions_are_within_the_ranges(file, ranges):
    tested, allowed = pins(file), requirements(ranges)
    assert tested.keys() == allowed.keys()
    for name, pin in tested.items():
        versions = [s.version for s in pin.specifier if s.operator == "=="]
        for version in versions:
            assert allowed[name].specifier.contains(version), name
        if not versions:
            assert pin.specifier == allowed[name].specifier


def test_the_package_is_imported_without_tensorflow():
    code = "import sys, tl_tf; tl_tf.__all__; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", tl_tf.__all__)
def test_a_name_is_that_of_its_module(name):
    home = importlib.import_module(f"tl_tf.{tl_tf._HOMES[name]}")
    assert getattr(tl_tf, name) is getattr(home, name)
    assert name in dir(tl_tf)
    assert getattr(tl_tf, name).__doc__


def test_recipes_load_from_any_folder_in_silence(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    config.load(["gin/quickstart.gin"], [])
    assert gin.query_parameter("%BATCH_SIZE") == 16
    assert not caplog.records


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'tl_tf' has no attribute 'TokenFinder'"):
        tl_tf.TokenFinder  # noqa: B018


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A folder with what the examples read: weights, and a data set "mine"."""
    monkeypatch.chdir(tmp_path)
    save_npz("weights.npz", build_vit(1000, image_px=384, variant="S", patch_px=32))
    size = (shards.HEIGHT, shards.WIDTH, 3)
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    frames = [shards.jpeg(noise)] * 20
    folder = Path("datasets")
    videos = {f"v{i}": shards.Video(frames, labels=[i % 3]) for i in range(9)}
    shards.write_dataset(folder, [videos])
    (folder / "toy").rename(folder / "mine")
    return tmp_path


def indented_blocks(text: str) -> list[str]:
    blocks = re.findall(r"\n\n((?:    .*\n|\n)+)", text)
    return [textwrap.dedent(block) for block in blocks]


def test_the_examples_of_the_package_run(user_folder):
    blocks = indented_blocks(tl_tf.__doc__)
    assert len(blocks) == 3
    found = {}
    for block in blocks:
        exec(block, found)
    assert found["model"].output_shape == (None, 10)
    assert found["tokens"].shape == (None, 8, 128)
    assert found["maps"].shape == (None, 15, 15, 8)
    assert found["logits"].shape == (1, 1000)
    assert found["clips"].shape == (8, 16, 64, 64, 3)
    assert -1 <= found["clips"].numpy().min() < found["clips"].numpy().max() <= 1


def test_the_examples_of_the_readme_run(user_folder):
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    assert blocks
    found = {}
    for block in blocks:
        exec(block, found)


def test_the_layer_learns_in_somebody_elses_model():
    """Its gradients and its configuration are those that Keras expects."""
    import tf_keras

    images = tf_keras.Input([16, 16, 3])
    grid = tf_keras.layers.Conv2D(8, 2, strides=2)(images)
    tokens, _ = tl_tf.TokenLearner(num_tokens=3)(grid)
    logits = tf_keras.layers.Dense(2)(tf_keras.layers.Flatten()(tokens))
    model = tf_keras.Model(images, logits)
    rng = np.random.default_rng(0)
    x = rng.normal(size=[64, 16, 16, 3]).astype(np.float32)
    y = (x[:, :8].mean(axis=(1, 2, 3)) > x[:, 8:].mean(axis=(1, 2, 3))).astype(int)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    history = model.fit(x, y, epochs=30, batch_size=16, verbose=0).history
    assert history["accuracy"][-1] > 0.9 > history["accuracy"][0]
    layer = tl_tf.TokenLearner.from_config(model.layers[2].get_config())
    assert layer.num_tokens == 3
