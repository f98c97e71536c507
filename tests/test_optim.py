import types

import numpy as np
import pytest
import tensorflow as tf

from tl_tf import optim


def test_the_rate_grows_with_the_batch():
    assert optim.rate_of_batch(0.8, rate_clips=4, batch_size=256) == pytest.approx(51.2)
    assert optim.rate_of_batch(0.8, rate_clips=4, batch_size=1) == pytest.approx(0.2)


def test_warmup_then_cosine_then_constant():
    schedule = optim.warmup_cosine(2.0, 30, warmup_steps=10, end_learning_rate=0.2)
    found = [float(schedule(step)) for step in (0, 5, 10, 20, 30, 31, 1000)]
    middle = 0.2 + 1.8 * 0.5  # half-way through the cosine
    expected = [0.0, 1.0, 2.0, middle, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_warmup_the_first_step_has_the_full_rate():
    schedule = optim.warmup_cosine(2.0, 8)
    np.testing.assert_allclose([schedule(0), schedule(4)], [2.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "rate, warmup_steps, text",
    [
        (1.0, 8, r"warmup_steps must be in 0..7 \(total_steps=8\), got 8"),
        (1.0, -1, "warmup_steps must be in 0..7"),
        (0.0, 0, "learning rate must be above 0, got 0.0"),
    ],
)
def test_bad_schedules_are_refused(rate, warmup_steps, text):
    with pytest.raises(ValueError, match=text):
        optim.warmup_cosine(rate, 8, warmup_steps=warmup_steps)


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
