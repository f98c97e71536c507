"""inputs.color, on the device."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from tl_tf.inputs import color

B, T, H, W = 4, 2, 5, 7


def clips(seed=3, *, count=B) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random([count, T, H, W, 3]).astype(np.float32)


def per_clip(*values) -> tf.Tensor:
    return tf.reshape(tf.constant(values, tf.float32), [-1, 1, 1, 1, 1])


def random_color(pixels, *, seed=(1, 2), jitter_share=0.0, grey_share=0.0):
    return color.random_color(
        tf.constant(pixels), seed=seed, jitter_share=jitter_share, grey_share=grey_share
    )


def test_each_clip_is_changed_as_tensorflow_changes_an_image():
    frames = clips() * 0.8
    draws = {
        "brightness": (0.1, 0.0, -0.1, 0.05),
        "saturation": (0.6, 1.4, 1.0, 1.2),
        "contrast": (1.3, 0.7, 1.0, 0.6),
        "hue": (-0.2, 0.1, 0.0, 0.2),
    }
    got = color.jitter(
        tf.constant(frames), **{k: per_clip(*v) for k, v in draws.items()}
    )
    for i, clip in enumerate(frames):
        want = tf.image.adjust_brightness(clip, draws["brightness"][i])
        want = tf.image.adjust_saturation(want, draws["saturation"][i])
        want = tf.image.adjust_contrast(want, draws["contrast"][i])
        want = tf.image.adjust_hue(want, draws["hue"][i])
        np.testing.assert_allclose(got[i], tf.clip_by_value(want, 0, 1), atol=1e-5)


def test_a_hue_by_hand():
    pixel = (0.8, 0.3, 0.4)
    frames = np.broadcast_to(np.float32(pixel), [1, T, H, W, 3])
    none = {"brightness": per_clip(0), "saturation": per_clip(1)}
    got = color.jitter(
        tf.constant(frames), **none, contrast=per_clip(1), hue=per_clip(0.15)
    )
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    want = colorsys.hsv_to_rgb((hue + 0.15) % 1, saturation, value)
    np.testing.assert_allclose(got, np.broadcast_to(want, frames.shape), atol=1e-6)


def test_grey_and_black_have_no_hue_to_turn():
    frames = np.zeros([1, T, H, W, 3], np.float32)
    frames[:, 0] = 0.5
    got = color.jitter(
        tf.constant(frames),
        brightness=per_clip(0),
        saturation=per_clip(1.4),
        contrast=per_clip(1),
        hue=per_clip(0.2),
    )
    np.testing.assert_allclose(got, frames, atol=1e-6)


def test_shares_of_none_change_nothing():
    pixels = clips() * 2 - 1
    np.testing.assert_allclose(random_color(pixels), pixels, atol=1e-6)


def test_grey_weighs_the_channels():
    pixels = clips() * 2 - 1
    got = random_color(pixels, grey_share=1.0)
    want = (pixels + 1) / 2 @ np.array([0.2989, 0.587, 0.114]) * 2 - 1
    for channel in range(3):
        np.testing.assert_allclose(got[..., channel], want, atol=1e-3)


def test_shares_are_those_of_the_clips_and_every_clip_has_its_own_draw():
    pixels = np.tile(clips(count=1), [300, 1, 1, 1, 1]) * 2 - 1
    got = random_color(pixels, jitter_share=0.8, grey_share=0.1).numpy()
    is_grey = (abs(np.ptp(got, axis=-1)) < 1e-6).all(axis=(1, 2, 3))
    is_same = (abs(got - pixels) < 1e-5).all(axis=(1, 2, 3, 4))
    assert 0.05 < is_grey.mean() < 0.16
    assert 0.11 < is_same.mean() < 0.26  # 0.2 * 0.9
    others = got[~is_grey & ~is_same]
    assert len(np.unique(others[:, 0, 0, 0], axis=0)) == len(others)


def test_all_frames_of_a_clip_change_alike():
    frame = clips(count=3)[:, :1]
    pixels = np.repeat(frame, 3, axis=1) * 2 - 1
    got = random_color(pixels, jitter_share=1.0).numpy()
    assert not np.allclose(got, pixels, atol=0.01)
    np.testing.assert_array_equal(got[:, 0], got[:, 2])


def test_a_seed_decides():
    pixels = clips() * 2 - 1
    first = random_color(pixels, jitter_share=1.0)
    np.testing.assert_array_equal(first, random_color(pixels, jitter_share=1.0))
    other = random_color(pixels, seed=(1, 3), jitter_share=1.0)
    assert not np.allclose(first, other, atol=0.01)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.parametrize("shape", [(B, T, H, W, 3), (B, H, W, 3)])
def test_xla_compiles_it_and_keeps_range_and_type(dtype, shape):
    pixels = tf.cast(tf.random.stateless_uniform(shape, (3, 4), -1, 1), dtype)

    @tf.function(jit_compile=True)
    def compiled(pixels):
        return color.random_color(pixels, seed=(1, 2), jitter_share=0.8, grey_share=0.5)

    got = compiled(pixels)
    assert got.dtype == dtype and got.shape == shape
    assert float(tf.reduce_max(tf.abs(tf.cast(got, tf.float32)))) <= 1


def test_xla_jitters_as_eager_does():
    frames = tf.constant(clips())
    draws = {
        "brightness": per_clip(0.1, 0, -0.1, 0.05),
        "saturation": per_clip(0.6, 1.4, 1, 1.2),
        "contrast": per_clip(1.3, 0.7, 1, 0.6),
        "hue": per_clip(-0.2, 0.1, 0, 0.2),
    }
    compiled = tf.function(color.jitter, jit_compile=True)(frames, **draws)
    np.testing.assert_allclose(compiled, color.jitter(frames, **draws), atol=1e-5)
