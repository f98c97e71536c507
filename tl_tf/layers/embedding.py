"""Patches to tokens, and the learned position of each."""

import fractions
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from tl_tf.layers import attention


class PatchEmbed(tf_keras.layers.Layer):
    """A linear projection of every patch; what does not fill a patch is cut off.

    Shapes: x [B, Y, X, 3] -> [B, H, W, C]
    Source: ViT, arXiv 2010.11929, equation 1; VALID, so that 512 pixels hold 36 patches
      of 14.
    Args:
      hidden_size: C, at least 1.
      patch_size: height and width of a patch, in pixels.
    """

    def __init__(self, hidden_size: int, patch_size: Sequence[int], **kwargs):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.patch_size = tuple(patch_size)
        self.projection = tf_keras.layers.Conv2D(
            hidden_size,
            kernel_size=self.patch_size,
            strides=self.patch_size,
            kernel_initializer="lecun_normal",  # Flax's default
            name="projection",
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a grid of patch tokens."""
        return self.projection(x)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "patch_size": self.patch_size,
        }


class TubeletEmbed(tf_keras.layers.Layer):
    """A linear projection of every tubelet; what does not fill one is cut off.

    Shapes: x [B, F, Y, X, 3] -> [B, T, H, W, C]
    Source: ViViT, arXiv 2103.15691, Section 3.2, "Tubelet embedding".
    Args:
      hidden_size: C, at least 1.
      tubelet_size: frames, and height and width in pixels.
    """

    def __init__(self, hidden_size: int, tubelet_size: Sequence[int], **kwargs):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.tubelet_size = tuple(tubelet_size)
        self.projection = tf_keras.layers.Conv3D(
            hidden_size,
            kernel_size=self.tubelet_size,
            strides=self.tubelet_size,
            kernel_initializer="lecun_normal",  # Flax's default
            name="projection",
        )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a grid of tokens for every temporal slice."""
        return self.projection(x)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "tubelet_size": self.tubelet_size,
        }


class FrameEmbed(tf_keras.layers.Layer):
    """A linear projection of every patch of some frames, spread evenly over the clip.

    Shapes: x [B, F, Y, X, 3] -> [B, T, H, W, C]
    Source: ViViT, arXiv 2103.15691, Section 3.2, "Uniform frame sampling".
    Args:
      hidden_size: C, at least 1.
      patch_size: height and width of a patch, in pixels.
      num_frames: T, in 1..F.
    """

    def __init__(
        self, hidden_size: int, patch_size: Sequence[int], num_frames: int, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_frames = num_frames
        self.patches = PatchEmbed(hidden_size, patch_size, name="patches")

    @property
    def projection(self) -> tf_keras.layers.Layer:
        """That of the patches."""
        return self.patches.projection

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a grid of patch tokens for every frame it takes."""
        frames = tf.unstack(x, axis=1)
        taken = [frames[i] for i in uniform_frames(len(frames), self.num_frames)]
        x = tf.stack(taken, axis=1)  # [B, T, Y, X, 3]
        x = self.patches(tf.reshape(x, [-1, *x.shape[2:]]))  # [B * T, H, W, C]
        return tf.reshape(x, [-1, self.num_frames, *x.shape[1:]])  # [B, T, H, W, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_size": self.patches.hidden_size,
            "patch_size": self.patches.patch_size,
            "num_frames": self.num_frames,
        }


def uniform_frames(num_frames: int, count: int) -> list[int]:
    """Frames at equal distances from each other and from both ends of a clip.

    Source: ViViT's code: the k-th of n is frame k F / (n + 1), rounded, half to even;
      all frames if n is F.
    Differs: exact. In floating point the authors' code finds one frame more for some
      pairs, as three where two of eight are wanted.
    """
    if count == num_frames:
        return list(range(num_frames))
    step = fractions.Fraction(num_frames, count + 1)
    return [round(k * step) for k in range(1, count + 1)]


class ConvStem(tf_keras.layers.Layer):
    """3x3 convolutions before the patches, each with LayerNorm and gelu.

    Shapes: x [B, Y, X, 3] -> [B, H, W, C]
    Source: none in the paper; "Early Convolutions Help Transformers See Better", arXiv
      2106.14881, which has batch normalisation and ReLU.
    Args:
      filters: of each convolution; C is the last.
      strides: of each, by which H and W are divided.
    """

    def __init__(self, filters: Sequence[int], strides: Sequence[int], **kwargs):
        super().__init__(**kwargs)
        self.filters = tuple(filters)
        self.strides = tuple(strides)
        self.convs = [
            tf_keras.layers.Conv2D(
                count,
                kernel_size=3,
                strides=stride,
                padding="same",
                kernel_initializer="he_normal",
                name=f"conv_{i}",
            )
            for i, (count, stride) in enumerate(zip(filters, strides, strict=True))
        ]
        self.norms = [attention.layer_norm(f"norm_{i}") for i in range(len(filters))]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a finer grid than that of the patches."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = attention.gelu(norm(conv(x)))
        return x

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
        }


class PositionEmbed(tf_keras.layers.Layer):
    """Adds a learned vector to each place of a sequence.

    Shapes: x [B, L, C] -> [B, L, C]
    Source: ViT, arXiv 2010.11929, equation 1.
    Raises:
      ValueError: L is not static.
    """

    def build(self, input_shape) -> None:
        """Creates a vector for every place."""
        _, length, channels = input_shape
        if length is None:
            raise ValueError(f"{self.name}: wanted a static L, got {input_shape}.")
        self.position_embedding = self.add_weight(
            name="position_embedding",
            shape=(1, length, channels),
            initializer=tf_keras.initializers.RandomNormal(stddev=0.02),
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the tokens, each with its place added."""
        return x + tf.cast(self.position_embedding, x.dtype)


def resize_position_embedding(
    table: np.ndarray,
    *,
    from_grid: Sequence[int],
    to_grid: Sequence[int],
    num_prefix: int = 0,
) -> np.ndarray:
    """Stretches position embeddings over another grid, corner to corner, linearly.

    Source: the authors' code, which calls scipy.ndimage.zoom of order 1; not
      tf.image.resize, whose corners lie half a cell away.
    Args:
      table: [1, num_prefix + L, C]; L is the product of from_grid.
      from_grid: H and W, or T, H and W.
      to_grid: as many sizes, that are wanted.
      num_prefix: leading rows, as that of a class token, that stay as they are.

    Returns:
      [1, num_prefix + L', C], of the dtype of `table`.

    Raises:
      ValueError: the table is not of from_grid.
    """
    wanted = num_prefix + math.prod(from_grid)
    if table.ndim != 3 or table.shape[:2] != (1, wanted):
        raise ValueError(
            f"position embedding: wanted [1, {wanted}, C] for a grid of"
            f" {'x'.join(map(str, from_grid))} and {num_prefix} other places, got"
            f" {list(table.shape)}."
        )
    prefix, grid = table[0, :num_prefix], table[0, num_prefix:]
    grid = grid.reshape([*from_grid, -1]).astype(np.float64)  # [..., H, W, C]
    for axis, size in enumerate(to_grid):
        grid = _interpolate(grid, size, axis=axis)
    grid = grid.reshape([math.prod(to_grid), -1]).astype(table.dtype)  # [L', C]
    return np.concatenate([prefix, grid])[np.newaxis]  # [1, num_prefix + L', C]


def _interpolate(values: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """Samples `size` places along an axis, the first and last among them."""
    last = values.shape[axis] - 1
    places = np.linspace(0, last, size) if size > 1 else np.zeros(1)
    below = np.minimum(places.astype(int), max(last - 1, 0))
    above = np.minimum(below + 1, last)
    share = np.expand_dims(
        places - below, tuple(i for i in range(values.ndim) if i != axis)
    )
    low, high = np.take(values, below, axis), np.take(values, above, axis)
    return low * (1 - share) + high * share
