import gin
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.contract import random_normal
from tl_tf.models import differences, x2p1d

B, T, H, W, K = 2, 4, 36, 40, 3
GAIN = 2.5
SEED = tf.constant([3, 4])


def build_x2p1d(num_classes):
    return x2p1d.build_x2p1d(
        num_classes, num_frames=T, width=0.1, stage_depths=(1, 1, 1, 1)
    )


@pytest.fixture(scope="module")
def model():
    tf_keras.utils.set_random_seed(0)  # of so few channels, all may be born dead
    return differences.build_on_differences(K, build_model=build_x2p1d, gain=GAIN)


def frames(seed=0):
    return random_normal(B, T, H, W, 3, seed=seed)


def test_differences_are_from_the_frame_before():
    x = frames()
    got = differences.differences(tf.constant(x), gain=GAIN).numpy()
    assert not got[:, 0].any()
    for t in range(1, T):
        np.testing.assert_allclose(got[:, t], GAIN * (x[:, t] - x[:, t - 1]), 1e-5)


def test_the_model_inside_is_fed_with_them(model):
    x = frames()
    want, _ = model.model(differences.differences(tf.constant(x), gain=GAIN))
    np.testing.assert_allclose(model(tf.constant(x))[0], want, rtol=1e-6)


def test_what_stands_still_is_not_seen(model):
    x, scene = frames(), random_normal(B, 1, H, W, 3, seed=1)
    want, _ = model(tf.constant(x))
    got, _ = model(tf.constant(x + scene))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    backwards, _ = model(tf.constant(x[:, ::-1]))
    assert np.abs(backwards - want).max() > 1e-5


def test_training_flag_seed_and_endpoints_are_passed_on(model):
    x = tf.constant(frames())
    logits, endpoints = model(x, training=True, seed=SEED)
    assert logits.shape == (B, K)
    assert endpoints["stem"].shape == (B, T, H // 2, W // 2, 2)
    with pytest.raises(ValueError, match="training with dropout needs a seed"):
        model(x, training=True)


def test_gradients_reach_every_weight(model):
    with tf.GradientTape() as tape:
        logits, _ = model(tf.constant(frames()), training=True, seed=SEED)
        loss = tf.reduce_sum(logits * random_normal(B, K, seed=2))
    assert len(model.trainable_variables) == len(model.model.trainable_variables)
    for gradient in tape.gradient(loss, model.trainable_variables):
        assert gradient is not None


def test_gin_names_the_model_inside():
    with gin.unlock_config():
        gin.parse_config(
            "import tl_tf.models.x2p1d\n"
            "build_on_differences.build_model = @build_x2p1d\n"
            f"build_x2p1d.num_frames = {T}\n"
            "build_x2p1d.width = 0.1\n"
            "build_x2p1d.stage_depths = (1, 1, 1, 1)\n"
        )
    assert differences.build_on_differences(K).model.num_frames == T


def test_a_gain_that_would_lose_the_input_is_refused():
    with pytest.raises(ValueError, match=r"gain must be > 0, got 0. Set build_on_diff"):
        differences.build_on_differences(K, build_model=build_x2p1d, gain=0)
