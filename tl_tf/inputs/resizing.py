"""Bilinear resizing of uint8 pixels, of images and of the frames of clips alike."""

import tensorflow as tf


def resize(
    pixels: tf.Tensor, size: tuple[int, int] | tf.Tensor, *, antialias: bool
) -> tf.Tensor:
    """Bilinear, aspect not kept.  uint8 [..., h, w, 3] -> uint8 [..., *size, 3].

    Args:
      pixels: of one image, or of several of one size.
      size: height and width, static or int32 [2].
      antialias: whether every pixel is read; otherwise some are skipped below half the
        size, in a third of the time.
    """
    pixels = tf.cast(pixels, tf.float32)
    if antialias:
        resized = tf.image.resize(pixels, size, antialias=True)
        return tf.cast(resized + 0.5, tf.uint8)
    # Cast before, and rounded in one pass after, it takes two thirds of the time.
    rounded = tf.raw_ops.QuantizeV2(
        input=tf.image.resize(pixels, size),
        min_range=0.0,
        max_range=255.0,
        T=tf.quint8,
        mode="SCALED",
    )
    return tf.bitcast(rounded.output, tf.uint8)
