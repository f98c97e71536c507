"""What the paper compares TokenLearner and TokenFuser with (Section 3.5)."""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from tl_tf.layers import attention


class GridPool(tf_keras.layers.Layer):
    """Averages the grid over equal windows: spatial pooling instead of TokenLearner.

    Shapes: x [B, H, W, C] -> [B, S, C]
    Source: Section 3.5.2, Table VI.
    Args:
      grid: rows and columns that are left, S in all; they divide H and W.
    Raises:
      ValueError: the grid does not divide H and W.
    """

    def __init__(self, grid: Sequence[int], **kwargs):
        super().__init__(**kwargs)
        self.grid = tuple(grid)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns a token for every window."""
        _, height, width, channels = x.shape
        rows, columns = self.grid
        if height % rows or width % columns:
            raise ValueError(
                f"{self.name}: wanted a grid that divides {height}x{width}, got"
                f" {rows}x{columns}."
            )
        windows = [-1, rows, height // rows, columns, width // columns, channels]
        x = tf.reduce_mean(tf.reshape(x, windows), axis=[2, 4])  # [B, rows, columns, C]
        return tf.reshape(x, [-1, rows * columns, channels])  # [B, S, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "grid": self.grid}


def unpool(y: tf.Tensor, maps: tf.Tensor) -> tf.Tensor:
    """Writes tokens back by the maps that pooled them: instead of TokenFuser.

    Shapes: y [B, S, C], maps [B, N, S] -> [B, N, C]
    Source: Section 3.5.3, alternative 1.
    """
    return tf.einsum("bns,bsc->bnc", tf.cast(maps, y.dtype), y)  # [B, N, C]


class Reprojection(tf_keras.layers.Layer):
    """Lets the grid attend to the tokens in one more Transformer layer.

    Shapes: y [B, S, C], x [B, N, C] -> [B, N, C]
    Source: Section 3.5.3, alternative 2 to TokenFuser.
    Differs: the paper does not write the layer down. This is the plainest one: queries
      from x, keys and values from y, then an MLP, both added to x.
    Args:
      num_heads: of the attention.
      mlp_size: width of the MLP's inner layer.
    """

    def __init__(self, num_heads: int, mlp_size: int, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_size = mlp_size
        self.grid_norm = attention.layer_norm("grid_norm")
        self.token_norm = attention.layer_norm("token_norm")
        self.attention = attention.Attention(num_heads, name="attention")
        self.mlp_norm = attention.layer_norm("mlp_norm")
        self.mlp = attention.Mlp(mlp_size, name="mlp")

    def call(self, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the grid with the tokens written onto it."""
        tf.debugging.assert_shapes(
            [(y, ("B", "S", "C")), (x, ("B", "N", "C"))], message=self.name
        )
        x = tf.cast(x, y.dtype)  # a Keras policy casts the first argument only
        x += self.attention(self.grid_norm(x), self.token_norm(y))
        return x + self.mlp(self.mlp_norm(x))

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_size": self.mlp_size,
        }
