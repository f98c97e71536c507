"""WHAT pixels of a clip's frames: one window a clip, decoded alone, resized, flipped.

All functions work eagerly and inside Dataset.map, and draw from the seed they get.
A window is int32 [4]: y, x, height, width in pixels of the stored frame.
"""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf
from scipy import special

from tl_tf.inputs import resizing

CACHED_FRAMES = 4  # resized together: few enough to stay in the processor's cache
BETA_STEPS = 4096  # of the table of a Beta distribution: within 0.001 of it


def random_windows(
    height: tf.Tensor,
    width: tf.Tensor,
    *,
    crop_px: int,
    short_side_px: int,
    scale_range: tuple[float, float],
    seed: tf.Tensor,
) -> tf.Tensor:
    """One square window, its scale drawn from `scale_range`, anywhere in the frame.

    Args:
      height: int32 [], of the stored frame.
      width: int32 [], of the stored frame.
      crop_px: side of the clip that is wanted.
      short_side_px: to which the frame's short side would be scaled at scale 1.
      scale_range: lowest and highest factor on `short_side_px`.
      seed: int32 [2].

    Returns:
      int32 [1, 4].
    """
    scale_seed, y_seed, x_seed = tf.unstack(tf.random.split(seed, 3))
    scale = tf.random.stateless_uniform([], scale_seed, *scale_range)
    side = _window_side(height, width, crop_px, short_side_px * scale)
    y = tf.random.stateless_uniform([], y_seed, 0, height - side + 1, dtype=tf.int32)
    x = tf.random.stateless_uniform([], x_seed, 0, width - side + 1, dtype=tf.int32)
    return tf.stack([y, x, side, side])[tf.newaxis]  # [1, 4]


def fixed_windows(
    height: tf.Tensor,
    width: tf.Tensor,
    *,
    crop_px: int,
    short_side_px: int,
    num_crops: int,
) -> tf.Tensor:
    """Square windows at scale 1: the centre, or several spread along the long side.

    Args:
      height: int32 [], of the stored frame.
      width: int32 [], of the stored frame.
      crop_px: side of the clip that is wanted.
      short_side_px: to which the frame's short side would be scaled.
      num_crops: 1 for the centre, or more from one end of the long side to the other.

    Returns:
      int32 [num_crops, 4].
    """
    side = _window_side(height, width, crop_px, short_side_px)
    spare_y, spare_x = height - side, width - side
    centre_y, centre_x = spare_y // 2, spare_x // 2
    if num_crops == 1:
        return tf.stack([centre_y, centre_x, side, side])[tf.newaxis]  # [1, 4]
    steps = tf.range(num_crops)
    y = tf.where(height > width, spare_y * steps // (num_crops - 1), centre_y)
    x = tf.where(height > width, centre_x, spare_x * steps // (num_crops - 1))
    sides = tf.fill([num_crops], side)
    return tf.stack([y, x, sides, sides], axis=1)  # [num_crops, 4]


def decode_windows(frames: tf.Tensor, windows: tf.Tensor, *, crop_px: int) -> tf.Tensor:
    """Decodes what the windows of a clip cover, once, and resizes each if it must.

    Args:
      frames: string [T], JPEG files of one size; T is static.
      windows: int32 [R, 4], square and all of one side; R is static.
      crop_px: side of the result.

    Returns:
      uint8 [R, T, crop_px, crop_px, 3].
    """
    cover = _cover(windows)
    pixels = [  # unrolled: 8 % faster than a loop in the graph
        tf.image.decode_and_crop_jpeg(frame, cover, channels=3)
        for frame in tf.unstack(frames, frames.shape[0])
    ]  # of each frame [cover height, cover width, 3]
    return _resize_windows(pixels, windows, crop_px=crop_px)


def cut_windows(frames: tf.Tensor, windows: tf.Tensor, *, crop_px: int) -> tf.Tensor:
    """The same of frames that are decoded already.

    Args:
      frames: uint8 [T, H, W, 3]; T is static.
      windows: int32 [R, 4], square and all of one side; R is static.
      crop_px: side of the result.

    Returns:
      uint8 [R, T, crop_px, crop_px, 3].
    """
    y, x, height, width = tf.unstack(_cover(windows))
    covered = frames[:, y : y + height, x : x + width]
    pixels = tf.unstack(covered, frames.shape[0])  # of each frame [height, width, 3]
    return _resize_windows(pixels, windows, crop_px=crop_px)


def _cover(windows: tf.Tensor) -> tf.Tensor:
    """The window that holds all windows: int32 [R, 4] -> int32 [4]."""
    y_x, side = windows[:, :2], windows[0, 2]
    corner = tf.reduce_min(y_x, axis=0)  # [2]
    return tf.concat([corner, tf.reduce_max(y_x, axis=0) - corner + side], axis=0)


def _resize_windows(
    pixels: list[tf.Tensor], windows: tf.Tensor, *, crop_px: int
) -> tf.Tensor:
    """Of what the windows cover of T frames, uint8 [height, width, 3] each.

    Returns:
      uint8 [R, T, crop_px, crop_px, 3].
    """
    num_frames, num_windows = len(pixels), windows.shape[0]
    y_x, side = windows[:, :2], windows[0, 2]
    from_corner = y_x - tf.reduce_min(y_x, axis=0)
    cuts = [tf.unstack(row) for row in tf.unstack(from_corner, num_windows)]

    def unresized() -> tf.Tensor:
        """Each frame is cut while the cache has it.  -> uint8 [R·T, side, side, 3]"""
        if num_windows == 1:
            return tf.stack(pixels)
        corners = itertools.product(cuts, pixels)
        return tf.stack([p[y : y + side, x : x + side] for (y, x), p in corners])

    def views(resize: Callable[[tf.Tensor], tf.Tensor], at_once: int) -> tf.Tensor:
        """Resizes so many frames at once.  -> uint8 [R·T, crop_px, crop_px, 3]"""
        parts = [
            tf.stack(pixels[i : i + at_once]) for i in range(0, num_frames, at_once)
        ]
        if num_windows == 1:
            return tf.concat([resize(part) for part in parts], axis=0)
        return tf.concat(
            [resize(p[:, y : y + side, x : x + side]) for y, x in cuts for p in parts],
            axis=0,
        )

    # Bilinear reads every source pixel down to half the side; the antialiased resize,
    # three times slower, is for what lies below.
    resize = partial(resizing.resize, size=(crop_px, crop_px))
    found = tf.case(
        [
            (tf.equal(side, crop_px), unresized),
            (
                side <= 2 * crop_px,
                lambda: views(partial(resize, antialias=False), CACHED_FRAMES),
            ),
        ],
        default=lambda: views(partial(resize, antialias=True), num_frames),
    )
    return tf.reshape(found, [num_windows, num_frames, crop_px, crop_px, 3])


def random_flip(clip: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors half of the clips left to right, all frames of a clip alike.

    Args:
      clip: uint8 [T, H, W, 3], of static shape.
      seed: int32 [2].
    """

    def flip() -> tf.Tensor:
        rows = tf.reshape(clip, [-1, *clip.shape[2:]])  # [T·H, W, 3]: 6× faster
        return tf.reshape(tf.reverse(rows, axis=[1]), clip.shape)  # [T, H, W, 3]

    return tf.cond(tf.random.stateless_uniform([], seed) < 0.5, flip, lambda: clip)


def normalize(frames: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Brings uint8 0..255 to -1..1, on the device: a quarter of the bytes to send."""
    return tf.cast(tf.cast(frames, tf.float32) / 127.5 - 1.0, dtype)


def mixup_cutmix(
    pixels: tf.Tensor,
    labels: tf.Tensor,
    *,
    seed: tf.Tensor,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each example with its mirror in the batch, on the device, under XLA too.

    With both alphas set, one of the two is drawn for the batch, each half of the time.
    A seed gives the same draws again, but others within XLA than without.
    Source: mixup (Zhang et al. 2017), Equation 1; CutMix (Yun et al. 2019), Equation 1.
    Differs: in official.vision.ops.augment.MixupAndCutmix draws are stateful, a cut is
      as wide as the image is high, and labels count what of a cut lies over the edge.
    Args:
      pixels: float [B, ..., H, W, 3], of static shape but for B.
      labels: float [B, K].
      seed: int32 [2].
      mixup_alpha: of the Beta distribution of mixup's shares; 0 for no mixup.
      cutmix_alpha: of the Beta distribution of CutMix's; 0 for no CutMix.

    Returns:
      Pixels and labels, of the same shapes and types.

    Raises:
      ValueError: for a negative alpha, or two zeros.
    """
    if min(mixup_alpha, cutmix_alpha) < 0 or max(mixup_alpha, cutmix_alpha) == 0:
        raise ValueError(
            "mixup_cutmix: mixup_alpha and cutmix_alpha must be >= 0, not both 0, got"
            f" {mixup_alpha} and {cutmix_alpha}. Do not call it for neither."
        )
    draws = tf.random.stateless_uniform([4, tf.shape(labels)[0]], seed)
    is_cutmix = draws[3, 0] < 0.5 if mixup_alpha else tf.constant(True)
    if not cutmix_alpha:
        return mixup(pixels, labels, share=_beta_quantile(draws[0], mixup_alpha))
    cut = cutmix(
        pixels,
        labels,
        share=_beta_quantile(draws[0], cutmix_alpha),
        centre=tf.transpose(draws[1:3]),  # [B, 2]
    )
    if not mixup_alpha:
        return cut
    mixed = mixup(pixels, labels, share=_beta_quantile(draws[0], mixup_alpha))
    return tuple(tf.where(is_cutmix, a, b) for a, b in zip(cut, mixed, strict=True))


def mixup(
    pixels: tf.Tensor, labels: tf.Tensor, *, share: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`share`, float32 [B], of each example and the rest of its mirror in the batch."""

    def mix(x: tf.Tensor) -> tf.Tensor:
        own = tf.cast(_like(share, x), x.dtype)
        return own * x + (1 - own) * tf.reverse(x, axis=[0])

    return mix(pixels), mix(labels)


def cutmix(
    pixels: tf.Tensor, labels: tf.Tensor, *, share: tf.Tensor, centre: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts a rectangle out of each example and fills it from its mirror in the batch.

    Args:
      pixels: float [B, ..., H, W, 3].
      labels: float [B, K]; mixed by the area that was filled.
      share: float32 [B], 0..1, of the area that stays if no edge cuts the rectangle.
      centre: float32 [B, 2] in 0..1, of the rectangle, y and x.
    """
    inside = []
    for axis, length in enumerate(pixels.shape[-3:-1]):
        half = tf.cast(tf.sqrt(1 - share) * length, tf.int32) // 2  # [B]
        middle = tf.cast(centre[:, axis] * length, tf.int32)  # [B]
        away = tf.range(length) - middle[:, tf.newaxis]  # [B, length]
        half = half[:, tf.newaxis]
        inside.append((away >= -half) & (away < half))
    is_cut = inside[0][:, :, tf.newaxis] & inside[1][:, tf.newaxis]  # [B, H, W]
    own = 1 - tf.reduce_mean(tf.cast(is_cut, tf.float32), axis=[1, 2])  # [B]
    frames = [1] * (pixels.shape.rank - 4)
    is_cut = tf.reshape(is_cut, [-1, *frames, *pixels.shape[-3:-1], 1])
    pixels = tf.where(is_cut, tf.reverse(pixels, axis=[0]), pixels)
    return pixels, mixup(labels, labels, share=own)[1]


def _like(share: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(share, [-1] + [1] * (x.shape.rank - 1))


def _beta_quantile(uniform: tf.Tensor, alpha: float) -> tf.Tensor:
    """Draws of Beta(alpha, alpha) from draws of 0..1, by a table.

    XLA knows no gamma distribution (StatelessRandomGammaV3), which is how they are
    drawn elsewhere.
    """
    table = special.betaincinv(alpha, alpha, np.linspace(0, 1, BETA_STEPS + 1))
    at = uniform * BETA_STEPS
    below = tf.cast(at, tf.int32)  # 0..BETA_STEPS - 1
    table = tf.constant(table, tf.float32)
    low, high = tf.gather(table, below), tf.gather(table, below + 1)
    return low + (high - low) * (at - tf.cast(below, tf.float32))


def _window_side(
    height: tf.Tensor, width: tf.Tensor, crop_px: int, short_side_px: tf.Tensor
) -> tf.Tensor:
    """A crop of `crop_px` after scaling the short side, in pixels before scaling."""
    short = tf.minimum(height, width)
    side = tf.cast(short, tf.float32) * (crop_px / tf.cast(short_side_px, tf.float32))
    return tf.clip_by_value(tf.cast(tf.round(side), tf.int32), 1, short)
