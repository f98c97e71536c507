"""WHAT pixels of an image: decoded upright, a window or the whole, resized, flipped.

All functions work eagerly and inside Dataset.map, and draw from the seed they get.
A window is int32 [4]: y, x, height, width in pixels of the upright image, which is the
stored one turned as its EXIF orientation says.
"""

import dataclasses
import math

import tensorflow as tf

from tl_tf.inputs import resizing

ASPECT_RANGE = (3 / 4, 4 / 3)  # of a random window, width to height
ERASED_AREA = (0.02, 1 / 3)  # of the image; Random Erasing, Section 3.2, as published
ERASED_LOG_ASPECT = (math.log(0.3), -math.log(0.3))
DCT_METHOD = "INTEGER_ACCURATE"  # as Pillow; no slower than TensorFlow's own choice
PNG_SIZE_AT = 16  # byte at which a PNG file holds width and height


@dataclasses.dataclass(frozen=True)
class Stored:
    """What all images of a split have in common, which saves asking each.

    Attributes:
      formats: those of "jpeg" and "png" that occur.
      is_turned: whether some image has an EXIF orientation other than 1.
      size: upright height and width if all have the same, else None.
    """

    formats: frozenset[str]
    is_turned: bool = False
    size: tuple[int, int] | None = None


def upright_size(data: tf.Tensor, orientation: tf.Tensor, stored: Stored) -> tf.Tensor:
    """Height and width, read from the header alone.  -> int32 [2]."""
    if stored.size:
        return tf.constant(stored.size)
    size = _stored_size(data, stored)
    if stored.is_turned:
        size = tf.where(orientation >= 5, size[::-1], size)
    return size


def decode(
    data: tf.Tensor,
    orientation: tf.Tensor,
    *,
    stored: Stored,
    window: tf.Tensor | None = None,
) -> tf.Tensor:
    """RGB pixels of a JPEG or PNG file, upright; of a JPEG only the window is decoded.

    Grey images are repeated, alpha is dropped, 16 bits are cut to the upper 8, and CMYK
    is multiplied out, inverted where an Adobe marker says so.

    Args:
      data: string [], the file.
      orientation: int32 [], 1..8 as in EXIF; ignored unless `stored.is_turned`.
      stored: what the file may be.
      window: int32 [4], or None for the whole image.

    Returns:
      uint8 [height, width, 3].
    """
    if stored.is_turned and window is not None:
        window = stored_window(window, orientation, _stored_size(data, stored))
    pixels = _decode_stored(data, stored, window)
    if stored.is_turned:
        pixels = tf.cond(
            orientation > 1, lambda: _turn(pixels, orientation), lambda: pixels
        )
    if stored.size and window is None:
        pixels = tf.ensure_shape(pixels, [*stored.size, 3])
    return pixels


def stored_window(
    window: tf.Tensor, orientation: tf.Tensor, stored_size: tf.Tensor
) -> tf.Tensor:
    """Where a window of the upright image lies in the stored one.

    Args:
      window: int32 [4], of the upright image.
      orientation: int32 [], 1..8.
      stored_size: int32 [2], height and width before turning.

    Returns:
      int32 [4].
    """
    is_swapped, *is_reversed = _moves(orientation)
    y_x, size = window[:2], window[2:]
    y_x = tf.where(is_swapped, y_x[::-1], y_x)
    size = tf.where(is_swapped, size[::-1], size)
    y_x = tf.where(tf.stack(is_reversed), stored_size - y_x - size, y_x)
    return tf.concat([y_x, size], axis=0)


def inception_window(
    size: tf.Tensor, *, area_range: tuple[float, float], seed: tf.Tensor
) -> tf.Tensor:
    """A window of random area and aspect anywhere in the image, or else all of it.

    Args:
      size: int32 [2], of the upright image.
      area_range: lowest and highest share of the image's area.
      seed: int32 [2].

    Returns:
      int32 [4].
    """
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([size, [3]], axis=0),
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.0,
        aspect_ratio_range=ASPECT_RANGE,
        area_range=area_range,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], axis=0)


def resize(
    pixels: tf.Tensor, size: tuple[int, int] | tf.Tensor, *, antialias: bool
) -> tf.Tensor:
    """Bilinear, aspect not kept.  uint8 [h, w, 3] -> uint8 [*size, 3]."""
    if isinstance(size, tuple) and pixels.shape[:2] == size:
        return pixels
    return resizing.resize(pixels, size, antialias=antialias)


def resize_short_side(
    pixels: tf.Tensor, short_side_px: int, *, antialias: bool
) -> tf.Tensor:
    """Scales the short side to `short_side_px`, aspect kept.  -> uint8 [h, w, 3]."""
    size = tf.shape(pixels)[:2]
    scale = short_side_px / tf.reduce_min(size)
    scaled = tf.round(tf.cast(size, tf.float32) * tf.cast(scale, tf.float32))
    return resize(pixels, tf.cast(scaled, tf.int32), antialias=antialias)


def central_crop(pixels: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """uint8 [h, w, 3] -> uint8 [*size, 3]; the image is at least that large."""
    y_x = (tf.shape(pixels)[:2] - size) // 2
    return _crop(pixels, y_x, size)


def random_crop(
    pixels: tf.Tensor, size: tuple[int, int], *, seed: tf.Tensor
) -> tf.Tensor:
    """uint8 [h, w, 3] -> uint8 [*size, 3]; the image is at least that large."""
    spare = tf.shape(pixels)[:2] - size
    share = tf.random.stateless_uniform([2], seed)
    y_x = tf.cast(share * tf.cast(spare + 1, tf.float32), tf.int32)
    return _crop(pixels, tf.minimum(y_x, spare), size)


def pad(pixels: tf.Tensor, pad_px: int, *, mode: str) -> tf.Tensor:
    """Adds `pad_px` on all sides: "reflect" mirrors the image, "zero" is black."""
    modes = {"reflect": "REFLECT", "zero": "CONSTANT"}
    return tf.pad(pixels, [[pad_px, pad_px], [pad_px, pad_px], [0, 0]], modes[mode])


def random_flip(pixels: tf.Tensor, *, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors half of the images left to right.  uint8 [H, W, 3], the same out."""
    is_mirrored = tf.random.stateless_uniform([], seed) < 0.5
    dims = tf.stack([False, is_mirrored, False])
    return tf.raw_ops.Reverse(tensor=pixels, dims=dims)


def random_erasing(pixels: tf.Tensor, *, share: float, seed: tf.Tensor) -> tf.Tensor:
    """Fills a rectangle of `share` of the images with noise, up to the edge.

    Source: Random Erasing (Zhong et al. 2017), Section 3.2, but for the edge.
    Args:
      pixels: uint8 [H, W, 3], of static shape.
      share: of the images, 0..1.
      seed: int32 [2].
    """
    seeds = tf.random.split(seed, 2)
    draws = tf.random.stateless_uniform([5], seeds[0])

    def erase() -> tf.Tensor:
        height, width = pixels.shape[:2]
        area = _between(draws[1], ERASED_AREA) * float(height * width)
        log_aspect = _between(draws[2], ERASED_LOG_ASPECT)
        half_side = tf.sqrt(area * tf.exp([log_aspect, -log_aspect])) / 2  # [2]
        centre = draws[3:] * [float(height), float(width)]  # [2]
        rows, columns = (
            tf.abs(tf.range(length) + 0.5 - centre[axis]) < half_side[axis]
            for axis, length in enumerate([float(height), float(width)])
        )
        noise = tf.random.stateless_uniform(
            pixels.shape, seeds[1], maxval=256, dtype=tf.int32
        )
        is_erased = (rows[:, tf.newaxis] & columns)[..., tf.newaxis]  # [H, W, 1]
        return tf.where(is_erased, tf.cast(noise, tf.uint8), pixels)

    return tf.cond(draws[0] < share, erase, lambda: pixels)


def find_fault(files: tf.data.Dataset, stored: Stored) -> tuple[int, str]:
    """Decodes files, string [], until one fails: its number, and what was wrong.

    Returns:
      How many files there are, and "", if none fails.
    """
    decoded = files.map(
        lambda data: tf.reduce_max(decode(data, tf.constant(1), stored=stored)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    count = 0
    try:
        for _ in decoded:
            count += 1
    except tf.errors.OpError as error:
        return count, f"wanted a whole image, got {_what(error)}"
    return count, ""


def _what(error: tf.errors.OpError) -> str:
    """The decoder's own words, without the nodes of the graph."""
    return error.message.splitlines()[0].split("}} ")[-1].split(" [[")[0]


def _between(draw: tf.Tensor, limits: tuple[float, float]) -> tf.Tensor:
    return limits[0] + draw * (limits[1] - limits[0])


def _crop(pixels: tf.Tensor, y_x: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    return tf.slice(pixels, tf.concat([y_x, [0]], axis=0), [*size, 3])


def _stored_size(data: tf.Tensor, stored: Stored) -> tf.Tensor:
    """Height and width before turning.  -> int32 [2]."""

    def jpeg() -> tf.Tensor:
        return tf.image.extract_jpeg_shape(data)[:2]

    def png() -> tf.Tensor:
        header = tf.strings.substr(data, PNG_SIZE_AT, 8)
        return tf.io.decode_raw(header, tf.int32, little_endian=False)[::-1]

    return tf.ensure_shape(_by_format(data, stored, jpeg=jpeg, png=png), [2])


def _decode_stored(
    data: tf.Tensor, stored: Stored, window: tf.Tensor | None
) -> tf.Tensor:
    def jpeg() -> tf.Tensor:
        if window is None:
            return tf.io.decode_jpeg(data, channels=3, dct_method=DCT_METHOD)
        return tf.image.decode_and_crop_jpeg(
            data, window, channels=3, dct_method=DCT_METHOD
        )

    def png() -> tf.Tensor:
        pixels = tf.io.decode_png(data, channels=3)
        if window is None:
            return pixels
        y, x, height, width = tf.unstack(window)
        return pixels[y : y + height, x : x + width]

    return _by_format(data, stored, jpeg=jpeg, png=png)


def _by_format(data: tf.Tensor, stored: Stored, *, jpeg, png) -> tf.Tensor:
    if stored.formats == {"jpeg"}:
        return jpeg()
    if stored.formats == {"png"}:
        return png()
    return tf.cond(tf.io.is_jpeg(data), jpeg, png)


def _moves(orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether the axes are swapped, and before it each of the stored ones reversed."""
    is_y_reversed = tf.reduce_any(tf.equal(orientation, [3, 4, 6, 7]))
    is_x_reversed = tf.reduce_any(tf.equal(orientation, [2, 3, 7, 8]))
    return orientation >= 5, is_y_reversed, is_x_reversed


def _turn(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    is_swapped, *is_reversed = _moves(orientation)
    pixels = tf.raw_ops.Reverse(tensor=pixels, dims=tf.stack([*is_reversed, False]))
    order = tf.where(is_swapped, [1, 0, 2], [0, 1, 2])
    return tf.transpose(pixels, order)  # [upright height, upright width, 3]
