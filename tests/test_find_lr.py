"""The learning rate range test, on curves drawn by hand and on a recipe."""

import dataclasses
import io
import json

import gin
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import tiny, toy_model
from tl_tf import experiment, find_lr, losses, optim, trainer

RATES = 10.0 ** np.linspace(-6, 1, 71)  # ten to a power of ten


def found(smoothed, *, exploded_at=None) -> find_lr.Found:
    smoothed = np.array(smoothed)
    return find_lr.Found(RATES[: len(smoothed)], smoothed, smoothed, exploded_at)


def curve(*points: tuple[float, float]) -> find_lr.Found:
    """Straight lines between (power of ten of the rate, loss)."""
    powers, values = zip(*points, strict=True)
    return found(np.interp(np.log10(RATES), powers, values))


def test_the_middle_of_the_valley_is_suggested():
    wide = curve((-6, 1), (-4, 1), (-3, 0.5), (-1, 0.5), (0, 3), (1, 9))
    # A fifth of the way down is left at 0.6: from 10^-3.2 to 10^-0.96, in tenths.
    assert wide.valley == pytest.approx((10**-3.2, 0.1))
    assert wide.suggested_rate == pytest.approx(10**-2.1)


def test_noise_within_the_valley_does_not_end_it():
    noisy = curve((-6, 1), (-4, 1), (-3, 0.5), (-2, 0.9), (-1, 0.5), (0, 3), (1, 9))
    assert noisy.valley == pytest.approx((10**-3.2, 0.1))


def test_what_is_low_behind_a_loss_above_the_first_does_not_count():
    bumpy = curve((-6, 1), (-4, 1), (-3, 0.2), (-2.5, 5), (-2, 0.21), (1, 9))
    assert bumpy.valley[1] == pytest.approx(1e-3)


def test_what_explodes_is_far_off():
    steep = curve((-6, 1), (-4, 0.9), (-2, 0.1), (-1.8, 9))
    exploded = dataclasses.replace(steep, exploded_at=0.0158)
    assert steep.suggested_rate > 5e-3
    assert exploded.suggested_rate == pytest.approx(1.58e-3)


@pytest.mark.parametrize("points", [((-6, 1), (1, 2)), ((-6, 1), (1, 0.995))])
def test_a_loss_that_never_falls_suggests_nothing(points, tmp_path, capfd):
    flat = curve(*points)
    assert flat.suggested_rate is None
    gin.clear_config()
    path = find_lr.write(tmp_path, flat, learning_rate=0.5, per_rate=1.0, title="flat")
    assert json.loads(path.read_text())["suggested_learning_rate"] is None
    assert "find_lr  the loss does not fall at any rate, and does not" in (
        capfd.readouterr().out
    )


def toy_loop(test: find_lr.RangeTest) -> trainer.Trainer:
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = toy_model.ToyModel()
        optimizer = optim.build_optimizer(test.schedule, momentum=0.0)
        optimizer.build(model.trainable_variables)
    return trainer.Trainer(
        model,
        optimizer,
        loss=losses.build_loss("sigmoid"),
        strategy=strategy,
        iterator=iter(toy_model.batches(6, count=1)),  # the same one again and again
        seed=4,
    )


def test_the_optimizer_uses_the_rates_that_are_told():
    test = find_lr.RangeTest(25, 1e-4, 10.0)
    loop, used = toy_loop(test), []
    result = test.run(
        loop,
        on_step=lambda done, rate, loss: used.append(
            float(test.schedule(loop.optimizer.iterations - 1))
        ),
    )
    np.testing.assert_allclose(used, result.rates, rtol=1e-4)
    assert result.rates[[0, -1]] == pytest.approx([1e-4, 10.0])
    assert result.exploded_at is None and len(result.losses) == 25
    # 0.9 of what was, in parts of what has been added up: by hand for the first two.
    first, second = result.losses[:2]
    assert result.smoothed[:2] == pytest.approx(
        [first, (0.09 * first + 0.1 * second) / 0.19]
    )


def test_the_test_stops_when_the_loss_explodes():
    test = find_lr.RangeTest(25, 1.0, 1e30)
    result = test.run(toy_loop(test))
    assert len(result.losses) < 25
    assert result.exploded_at is not None and result.exploded_at <= 1e30
    assert np.isfinite(result.losses).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 19}, "find_lr.num_steps must be at least 20, got 19"),
        ({"start_rate": 0.0}, "wanted 0 < start_rate < end_rate, got 0.0 and 50.0"),
        ({"end_rate": 1e-9}, "wanted 0 < start_rate < end_rate"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        find_lr.find_lr(0.5, **options)


def test_rates_are_around_the_recipes():
    test = find_lr.find_lr(0.5)
    assert (test.start_rate, test.end_rate) == pytest.approx((5e-5, 50.0))


def run(data_dir, model_dir, mode: str, *bindings: str) -> None:
    gin.clear_config()
    tiny.load(tiny.QUICKSTART, "train.learning_rate_batch = 4", *bindings)
    experiment.run(mode, model_dir=model_dir, data_dir=data_dir, tpu=None)


def test_a_recipe_is_tested_and_nothing_stands_in_the_way(tiny_data, tmp_path, capfd):
    run(tiny_data, tmp_path, "find_lr", "find_lr.num_steps = 20")
    printed = capfd.readouterr().out
    line = printed.splitlines()[-1]  # before it, where it is
    assert line.startswith("find_lr  ")
    assert line.endswith(str(tmp_path / "results" / "find_lr.png"))
    assert "the recipe's is 0.5  ->" in line  # 1.0 for a batch of 4, of 2
    result = json.loads((tmp_path / "results" / "find_lr.json").read_text())
    assert 1 <= len(result["rates"]) <= 20
    if result["suggested_rate"] is not None:
        stated = float(f"{2 * result['suggested_rate']:.2g}")
        assert result["suggested_learning_rate"] == stated
        assert f"LEARNING_RATE = {stated:g} (a rate of " in line
        assert " is suggested: the loss is near its lowest from " in line
    png = (tmp_path / "results" / "find_lr.png").read_bytes()
    assert Image.open(io.BytesIO(png)).size == (1200, 675)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "config.gin",
        "operative_config.gin",
        "find_lr.json",
        "find_lr.png",
    }
