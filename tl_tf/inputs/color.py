"""Colours of a clip: brightness, saturation, contrast, hue, and none at all.

On the device: a host would take 118 ms for a clip of 32 x 224 x 224 on two cores, eight
times as long as decoding it.
"""

import tensorflow as tf

# Of the reader that ViViT was trained with (dmvr's color_default_augm), in its order.
MAX_BRIGHTNESS = 32 / 255
SATURATION = CONTRAST = (0.6, 1.4)
MAX_HUE = 0.2  # of the circle
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # as tf.image.rgb_to_grayscale


def random_color(
    pixels: tf.Tensor, *, seed: tf.Tensor, jitter_share: float, grey_share: float
) -> tf.Tensor:
    """Other colours for some of the examples, the same for all frames of a clip.

    A seed gives the same draws again, but others within XLA than without.
    Source: TokenLearner, Section 5.2, by ViViT's settings (arXiv 2103.15691).
    Args:
      pixels: float [B, ..., H, W, 3] in -1..1.
      seed: int32 [2].
      jitter_share: of the examples that are jittered, 0..1.
      grey_share: of the examples, jittered or not, that lose their colours, 0..1.

    Returns:
      Pixels in -1..1, of the same shape and type.
    """
    draws = tf.random.stateless_uniform([6, tf.shape(pixels)[0]], seed)
    draws = tf.reshape(draws, [6, -1] + [1] * (pixels.shape.rank - 1))
    frames = tf.cast(pixels, tf.float32) / 2 + 0.5
    jittered = jitter(
        frames,
        brightness=(2 * draws[0] - 1) * MAX_BRIGHTNESS,
        saturation=_between(draws[1], SATURATION),
        contrast=_between(draws[2], CONTRAST),
        hue=(2 * draws[3] - 1) * MAX_HUE,
    )
    frames = tf.where(draws[4] < jitter_share, jittered, frames)
    grey = tf.reduce_sum(frames * GREY_WEIGHTS, axis=-1, keepdims=True)
    frames = tf.where(draws[5] < grey_share, grey, frames)
    return tf.cast(frames * 2 - 1, pixels.dtype)


def jitter(
    frames: tf.Tensor,
    *,
    brightness: tf.Tensor,
    saturation: tf.Tensor,
    contrast: tf.Tensor,
    hue: tf.Tensor,
) -> tf.Tensor:
    """What tf.image.adjust_* do for one image, by numbers for each example.

    Args:
      frames: float32 [B, ..., H, W, 3] in 0..1.
      brightness: float32 [B, ..., 1, 1, 1], that is added.
      saturation: alike, that saturations are multiplied with.
      contrast: alike, by which differences from the frame's mean grow.
      hue: alike, by which hues turn, in circles.

    Returns:
      The same shape, cut to 0..1.
    """
    frames = frames + brightness
    # Saturation in HSV, written out: value - (value - channel) * new / old saturation.
    value = tf.reduce_max(frames, axis=-1, keepdims=True)
    span = value - tf.reduce_min(frames, axis=-1, keepdims=True)
    most = tf.math.divide_no_nan(tf.nn.relu(value), span)
    frames = value - (value - frames) * tf.minimum(saturation, most)
    mean = tf.reduce_mean(frames, axis=[-3, -2], keepdims=True)
    frames = mean + (frames - mean) * contrast
    hsv = tf.image.rgb_to_hsv(frames)
    turned = tf.math.floormod(hsv[..., :1] + hue, 1.0)
    frames = tf.image.hsv_to_rgb(tf.concat([turned, hsv[..., 1:]], axis=-1))
    return tf.clip_by_value(frames, 0.0, 1.0)


def _between(draw: tf.Tensor, limits: tuple[float, float]) -> tf.Tensor:
    return limits[0] + draw * (limits[1] - limits[0])
