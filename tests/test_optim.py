import types

import numpy as np
import pytest
import tensorflow as tf

from tl_tf import optim


def test_the_rate_grows_with_the_batch():
    assert optim.rate_of_batch(0.8, rate_clips=4, batch_size=256) == pytest.approx(51.2)
    assert optim.rate_of_batch(0.8, rate_clips=4, batch_size=1) == pytest.approx(0.2)


def test_warmup_then_cosine_then_constant():
    schedule = optim.build_schedule(2.0, 30, warmup_steps=10, end_learning_rate=0.2)
    found = [float(schedule(step)) for step in (0, 5, 10, 20, 30, 31, 1000)]
    middle = 0.2 + 1.8 * 0.5  # half-way through the cosine
    expected = [0.0, 1.0, 2.0, middle, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_warmup_the_first_step_has_the_full_rate():
    schedule = optim.build_schedule(2.0, 8)
    np.testing.assert_allclose([schedule(0), schedule(4)], [2.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "decay, options, expected",
    [
        # Warm-up 1/2 of the rate at step 2, all of it at 4; half-way at 9; end at 14.
        ("linear", {"end_learning_rate": 0.4}, [0.0, 1.0, 2.0, 1.2, 0.4, 0.4]),
        ("constant", {}, [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
        # 2 / sqrt(1 + 5 / 5), 2 / sqrt(1 + 10 / 5)
        ("rsqrt", {"timescale_steps": 5}, [0, 1, 2, 2**0.5, 2 / 3**0.5, 2 / 3**0.5]),
        # The decay runs below the warm-up: 3/4 of it is left at 2 + 3, and so on.
        ("linear", {"decay_start_step": 2}, [0, 1, 20 / 12, 10 / 12, 0, 0]),
        ("linear", {"decay_start_step": 0}, [0, 12 / 14, 20 / 14, 10 / 14, 0, 0]),
        ("linear", {"decay_start_step": 9}, [0, 1, 2, 2, 0, 0]),
    ],
)
def test_decays_by_hand(decay, options, expected):
    schedule = optim.build_schedule(2.0, 14, decay=decay, warmup_steps=4, **options)
    found = [float(schedule(step)) for step in (0, 2, 4, 9, 14, 15_000)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decay", optim.DECAYS)
def test_schedules_run_compiled_on_step_counters(decay):
    schedule = optim.build_schedule(0.7, 19, decay=decay, warmup_steps=3)
    compiled = tf.function(schedule, jit_compile=True)
    for step in (0, 2, 11, 40):
        found = compiled(tf.constant(step, tf.int64))
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, schedule(step), rtol=1e-5, atol=1e-7)


def test_schedules_come_back_from_their_config():
    schedule = optim.build_schedule(0.7, 19, decay="rsqrt", timescale_steps=6)
    again = optim.Schedule.from_config(schedule.get_config())
    assert float(again(13)) == float(schedule(13))
    assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    "rate, options, text",
    [
        (1.0, {"warmup_steps": 8}, r"warmup_steps .* 0..7 \(total_steps=8\), got 8"),
        (1.0, {"warmup_steps": -1}, "warmup_steps must be in 0..7"),
        (1.0, {"decay_start_step": 9}, "decay_start_step must be in 0..7 .* got 9"),
        (0.0, {}, "learning_rate must be above 0, got 0.0. Set train.learning_rate"),
        (1.0, {"decay": "step"}, r"decay must be one of \('cosine', .* got 'step'"),
        (1.0, {"end_learning_rate": 1.5}, r"in 0..learning_rate \(1.0\), got 1.5"),
        (
            1.0,
            {"decay": "rsqrt", "end_learning_rate": 0.5},
            "end_learning_rate=0.5 is not reached by decay='rsqrt'. Leave it at 0",
        ),
        (1.0, {"timescale_steps": 0}, "timescale_steps must be at least 1, got 0"),
    ],
)
def test_bad_schedules_are_refused(rate, options, text):
    with pytest.raises(ValueError, match=text):
        optim.build_schedule(rate, 8, **options)


def test_momentum_by_hand():
    variable = tf.Variable([1.0])
    optimizer = optim.build_optimizer(0.5, momentum=0.8)
    for gradient in (1.0, 2.0):
        optimizer.apply_gradients([(tf.constant([gradient]), variable)])
    # Velocities -0.5 and 0.8 * -0.5 - 1.0.
    np.testing.assert_allclose(variable.numpy(), [1 - 0.5 - 1.4], rtol=1e-6)


def test_averaged_weights_come_and_go():
    variable = tf.Variable([1.0, 2.0])
    model = types.SimpleNamespace(trainable_variables=[variable])
    optimizer = optim.build_optimizer(1.0, momentum=0.0, ema_decay=0.9)
    for _ in range(2):
        optimizer.apply_gradients([(tf.ones(2), variable)])
    average = 0.9 * (0.9 * 1 + 0.1 * 0) + 0.1 * -1  # of 1, 0, -1
    with optim.averaged_weights(optimizer, model):
        np.testing.assert_allclose(variable[0].numpy(), average, rtol=1e-6)
    np.testing.assert_allclose(variable.numpy(), [-1.0, 0.0], rtol=1e-6)


def test_without_average_the_weights_stay():
    variable = tf.Variable([1.0])
    model = types.SimpleNamespace(trainable_variables=[variable])
    with optim.averaged_weights(optim.build_optimizer(1.0), model):
        assert variable.numpy() == [1.0]


def test_bad_average_is_refused():
    with pytest.raises(
        ValueError, match=r"ema_decay must be in \(0, 1\) or None, got 1"
    ):
        optim.build_optimizer(1.0, ema_decay=1)
