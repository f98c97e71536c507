"""Every file directly in gin/ is checked, and runs when it is shrunk by bindings."""

import json

import pytest
import tensorflow as tf

from tests import tiny
from tl_tf import config, experiment, inspection, session

DISTINCT = tiny.distinct_recipes()  # of the rest, what is shrunk has run already


def spec_of(data_dir, phase: str) -> dict[str, tf.TensorSpec]:
    """What a recipe's input looks like."""
    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    one = session.Session("train", data_dir, data_dir, one_device)
    is_training = phase == "train"
    batch = {"batch_size": 2} if is_training else {}  # from train.batch_size
    data = session.open_split(one, is_training=is_training, **batch)
    return data.batches.element_spec


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_a_recipe_as_it_stands_has_no_mistake(recipe):
    config.check([recipe], [])


@pytest.mark.parametrize("recipe", tiny.RECIPES)
def test_a_recipe_states_how_it_is_run_and_what_to_expect(recipe):
    text = (tiny.ROOT / recipe).read_text()
    assert "docs/RESULTS.md row" in text
    assert f"--gin_file={recipe}" in text
    assert "# Expect:" in text


@pytest.mark.parametrize("recipe", DISTINCT)
def test_a_recipe_trains_and_evaluates(recipe, tiny_data, tmp_path):
    tiny.load(recipe)
    experiment.run("train_and_eval", model_dir=tmp_path, data_dir=tiny_data, tpu=None)
    assert tf.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-2")
    result = json.loads((tmp_path / "results" / "test-2.json").read_text())
    if tiny.is_of_images(recipe):
        assert result["num_images"] == 2 * tiny.TEST_IMAGES
        assert 0 <= result["metrics"]["top1"] <= 1
        bound = "build_vit.mlp_size = 24"
    else:
        assert result["num_videos"] == tiny.TEST_VIDEOS
        metric = "top1" if tiny.has_one_label(recipe) else "map"
        assert 0 <= result["metrics"][metric] <= 1
        is_vivit = tiny.is_of_vivit(recipe)
        bound = "build_vivit.depth = 2" if is_vivit else "build_x2p1d.width = 0.1"
    configured = (tmp_path / "config.gin").read_text()
    operative = (tmp_path / "operative_config.gin").read_text()
    assert bound in configured
    assert bound in operative
    # Only the operative configuration lists the defaults of what was called.
    assert "train.accumulation_steps = 1" not in configured
    assert "train.accumulation_steps = 1" in operative
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("recipe", DISTINCT)
def test_the_input_of_a_recipe_is_ready_for_a_tpu(recipe, tiny_data):
    tiny.load(recipe)
    for phase in ("train", "eval"):
        for name, spec in spec_of(tiny_data, phase).items():
            assert spec.shape.is_fully_defined(), (phase, name)
            assert spec.dtype in (tf.uint8, tf.float32, tf.int32), (phase, name)


@pytest.mark.parametrize("recipe", DISTINCT)
def test_a_recipe_can_be_inspected(recipe, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "LOW_PRECISIONS", {})  # tests/test_inspection.py
    tiny.load(recipe)
    experiment.run("inspect", model_dir=tmp_path, data_dir=tmp_path, tpu=None)
    lines = capfd.readouterr().out.splitlines()
    if tiny.is_of_images(recipe):
        assert lines[0] == "vit, one forward pass of 1 x 32 x 32 x 3"
    elif tiny.is_of_vivit(recipe):
        assert lines[0] == "vivit, one forward pass of 1 x 4 x 32 x 32 x 3"
        assert any(line.startswith("2 x 3 views a video; GFLOPs: ") for line in lines)
    else:
        assert lines[0] == "x2p1d, one forward pass of 1 x 3 x 36 x 36 x 3"
    assert any(line.startswith("total") for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # test_golden_summary traces models of this size for CI
def test_a_recipe_can_be_inspected_at_its_full_size(capfd, tmp_path):
    config.load(["gin/charades_x21d_tl.gin"], [])
    experiment.run("inspect", model_dir=tmp_path, data_dir=tmp_path, tpu=None)
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "x2p1d, one forward pass of 1 x 64 x 256 x 256 x 3"


@pytest.mark.parametrize(
    "binding",
    [
        "eval/build_x2p1d.beta = 'mlp'",  # no call of it is in that scope
        "tune/train.clip_norm = 2.0",
    ],
)
def test_a_binding_that_nothing_uses_is_an_error(binding, tiny_data, tmp_path):
    tiny.load(tiny.QUICKSTART, binding)
    name = binding.split(" ")[0]
    with pytest.raises(ValueError, match=f"bindings that nothing uses: {name}. Remove"):
        experiment.run("train", model_dir=tmp_path, data_dir=tiny_data, tpu=None)
    assert not list(tmp_path.glob("ckpt-*"))
