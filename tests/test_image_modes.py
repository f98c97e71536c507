"""Modes of run.py on images: resume, fine-tune, few-shot, weights under other names."""

import json
import re
import shutil
from pathlib import Path

import gin
import numpy as np
import pytest
import tensorflow as tf

from tests import tiny
from tl_tf import experiment, npz

RECIPE = "gin/cifar10_vit_tl.gin"
FINE_TUNED = "gin/cifar10_ft48_vit_tl.gin"
ALL_THAT_DRAWS = (
    "build_vit.dropout_rate = 0.1",
    "build_vit.attention_dropout_rate = 0.1",
    "build_vit.drop_path_rate = 0.2",
    "train.mixup_alpha = 0.2",
    "train.cutmix_alpha = 1.0",
    "train/image_dataset.randaugment_layers = 1",
    "TOTAL_STEPS = 4",
    "train.steps_per_loop = 1",
    "train.checkpoint_every_steps = 1",
    "train.keep_checkpoints = 9",
)


def run(mode: str, model_dir: Path, data_dir: Path, *bindings: str, recipe=RECIPE):
    gin.clear_config()
    tiny.load(recipe, *bindings)
    experiment.run(mode, model_dir=model_dir, data_dir=data_dir, tpu=None)


def values(checkpoint: Path) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(checkpoint))
    names = [n for n in reader.get_variable_to_shape_map() if "iterator" not in n]
    return {n: reader.get_tensor(n) for n in names if "save_counter" not in n}


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> Path:
    model_dir = tmp_path_factory.mktemp("trained")
    run("train", model_dir, tiny_data, *ALL_THAT_DRAWS)
    return model_dir


def test_a_resumed_run_equals_an_unbroken_one(trained, tiny_data, tmp_path):
    for file in trained.glob("ckpt-2.*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-2"\n')
    run("train", tmp_path, tiny_data, *ALL_THAT_DRAWS)
    want, got = values(trained / "ckpt-4"), values(tmp_path / "ckpt-4")
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    before = values(trained / "ckpt-3")
    assert any((before[name] != value).any() for name, value in want.items())


def test_features_are_classified_from_a_few_images(trained, tiny_data, tmp_path, capfd):
    model_dir = tmp_path / "run"
    shutil.copytree(trained, model_dir)
    sets = (("tiny_images", "train", "test"), ("tiny_images", "train[:50%]", "test"))
    bindings = (
        f"evaluate_fewshot.datasets = {sets}",
        "evaluate_fewshot.shots = (1, 2)",
    )
    run("fewshot", model_dir, tiny_data, *ALL_THAT_DRAWS, *bindings)
    result = json.loads((model_dir / "results" / "fewshot-4.json").read_text())
    assert result["shots"] == [1, 2] and result["step"] == 4
    for name in ("tiny_images train", "tiny_images train[:50%]"):
        accuracies = np.array(result["accuracy_by_l2"][name])
        assert accuracies.shape == (2, len(result["l2_regs"]))
        columns = [result["l2_regs"].index(l2) for l2 in result["best_l2"]]
        assert result["accuracy"][name] == accuracies[[0, 1], columns].tolist()
    assert "mean" in capfd.readouterr().out


def test_weights_go_out_and_come_back(trained, tiny_data, tmp_path, capfd):
    model_dir = tmp_path / "run"
    shutil.copytree(trained, model_dir)
    run("save_npz", model_dir, tiny_data, *ALL_THAT_DRAWS)
    path = model_dir / "weights-4.npz"
    assert npz.read(path)["output_projection/kernel"].shape == (16, 2)
    run(
        "eval",
        tmp_path / "other",
        tiny_data,
        f"warm_start.path = '{path}'",
    )
    run("eval", model_dir, tiny_data, *ALL_THAT_DRAWS)
    scores = [
        np.load(folder / "results" / f"test-{step}.scores.npz")["view_scores"]
        for folder, step in ((tmp_path / "other", 0), (model_dir, 4))
    ]
    np.testing.assert_array_equal(*scores)
    capfd.readouterr()
    bindings = (f"INIT_FROM = '{path}'", "IMAGE_PX = 48")
    run("train", tmp_path / "tuned", tiny_data, *bindings, recipe=FINE_TUNED)
    screen = capfd.readouterr().out
    assert re.search(r"pos_embedding +resized +1x64x16 -> 1x144x16\n", screen)
    assert ", 1 resized" in screen


def test_weights_that_leave_something_out_are_not_evaluated(
    trained, tiny_data, tmp_path
):
    run("save_npz", trained, tiny_data, *ALL_THAT_DRAWS)
    whole = npz.read(trained / "weights-4.npz")
    part = {n: v for n, v in whole.items() if "TokenLearner" not in n}
    npz.write(tmp_path / "part.npz", part)
    bindings = [f"warm_start.path = '{tmp_path / 'part.npz'}'"]
    with pytest.raises(ValueError, match="TokenLearnerModule_0"):
        run("eval", tmp_path / "run", tiny_data, *bindings)
    bindings.append("warm_start.allow_new = ('*TokenLearner*',)")
    with pytest.raises(ValueError, match="leaves 6 variables at their first values"):
        run("eval", tmp_path / "run", tiny_data, *bindings)


def test_fine_tuning_wants_weights(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="wanted weights to start from, got none"):
        run(
            "train",
            tmp_path,
            tiny_data,
            "warm_start.is_required = True",
            recipe=FINE_TUNED,
        )
