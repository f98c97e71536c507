"""Every way from a frame's grid to S tokens that the paper compares (Section 6.3.3).

Each is called alike, `layer(x) -> (tokens [B, S, C], token maps or None)`, and knows
single frames only: callers fold time into the batch. TOKENIZERS names them.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from tl_tf.layers import attention, token_learner, volume_token_learner


def area_weights(size: int, parts: int) -> np.ndarray:
    """Weights by which `size` cells in a row become `parts` equal stretches of it.

    A cell across a border counts in both stretches, by its share; 7 cells can so be
    split in two. Each row adds up to 1.  -> float32 [parts, size]
    """
    cells, stretches = np.arange(size) * parts, np.arange(parts) * size
    start = np.maximum(cells, stretches[:, None])  # in units of 1 / (size * parts)
    end = np.minimum(cells + parts, stretches[:, None] + size)
    return (np.maximum(end - start, 0) / size).astype(np.float32)


def split_grid(x: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """Averages the grid over equal rectangles; does nothing to a grid of that size.

    Shapes: x [B, H, W, C] -> [B, R, Q, C]
    """
    _, h, w, _ = x.shape
    if (h, w) == (rows, columns):
        return x
    by_row = tf.constant(area_weights(h, rows), x.dtype)
    by_column = tf.constant(area_weights(w, columns), x.dtype)
    x = tf.einsum("rh,bhwc->brwc", by_row, x)
    return tf.einsum("qw,brwc->brqc", by_column, x)


class GridTokens(tf_keras.layers.Layer):
    """Splits the frame into S equal rectangles: no learning, each token a mean.

    One token is the mean of the frame. There are no token maps.

    Shapes: x [B, H, W, C] -> [B, S, C]
    Source: Section 6.3.3, alternative 1, "a fixed grid".
    Differs: the paper does not say how 8 tokens split a grid of 7 x 7: here S is rows
      times columns, the rows as many as they can be without being more than the
      columns, and a cell across a border counts in both.
    Args:
      num_tokens: S, at least 1.
    Raises:
      ValueError: num_tokens is out of range.
    """

    def __init__(self, num_tokens: int, **kwargs):
        super().__init__(**kwargs)
        token_learner.check_num_tokens(self.name, num_tokens)
        self.num_tokens = num_tokens
        self.rows = max(r for r in range(1, num_tokens + 1) if _is_split(num_tokens, r))

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, None]:
        """Returns the tokens, row by row, and no token maps."""
        tf.debugging.assert_shapes([(x, ("B", "H", "W", "C"))], message=self.name)
        tokens = split_grid(x, self.rows, self.num_tokens // self.rows)
        return tf.reshape(tokens, [-1, self.num_tokens, x.shape[-1]]), None  # [B, S, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_tokens": self.num_tokens}


class DenseTokens(tf_keras.layers.Layer):
    """Makes S tokens by one dense layer of the whole frame, all cells and channels.

    Shapes: x [B, H, W, C] -> [B, S, C]
    Source: Section 6.3.3, alternative 2, "directly generating tokens using a fully
      connected layer".
    Differs: such a layer knows one size of grid only, and the paper trains on 7 x 7 and
      tests on 8 x 8 cells: another grid is first brought to this one by areas.
    Args:
      num_tokens: S, at least 1.
      grid: rows and columns that the layer is made for; [rows * columns * C, S * C]
        weights.
    Raises:
      ValueError: num_tokens is out of range.
    """

    def __init__(self, num_tokens: int, grid: Sequence[int] = (7, 7), **kwargs):
        super().__init__(**kwargs)
        token_learner.check_num_tokens(self.name, num_tokens)
        self.num_tokens = num_tokens
        self.grid = tuple(grid)

    def build(self, input_shape) -> None:
        """Creates the layer, as wide as the input."""
        self.dense = tf_keras.layers.Dense(
            self.num_tokens * input_shape[-1], name="dense"
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, None]:
        """Returns the tokens and no token maps."""
        tf.debugging.assert_shapes([(x, ("B", "H", "W", "C"))], message=self.name)
        rows, columns = self.grid
        channels = x.shape[-1]
        x = split_grid(x, rows, columns)
        x = tf.reshape(x, [-1, rows * columns * channels])  # [B, R*Q*C]
        tokens = tf.reshape(self.dense(x), [-1, self.num_tokens, channels])
        return tokens, None  # [B, S, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "grid": self.grid,
        }


class PooledTokens(tf_keras.layers.Layer):
    """Makes S tokens by an MLP of the frame's mean.

    Shapes: x [B, H, W, C] -> [B, S, C]
    Source: Section 6.3.3, alternative 3: "spatial global average pooling per frame and
      then use MLP to generate tokens".
    Differs: the MLP is not written down: C -> C, gelu, C -> S * C.
    Args:
      num_tokens: S, at least 1.
    Raises:
      ValueError: num_tokens is out of range.
    """

    def __init__(self, num_tokens: int, **kwargs):
        super().__init__(**kwargs)
        token_learner.check_num_tokens(self.name, num_tokens)
        self.num_tokens = num_tokens

    def build(self, input_shape) -> None:
        """Creates the MLP, as wide as the input."""
        channels = input_shape[-1]
        self.hidden = tf_keras.layers.Dense(
            channels, activation=attention.gelu, name="hidden"
        )
        self.out = tf_keras.layers.Dense(self.num_tokens * channels, name="out")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, None]:
        """Returns the tokens and no token maps."""
        tf.debugging.assert_shapes([(x, ("B", "H", "W", "C"))], message=self.name)
        y = self.out(self.hidden(tf.reduce_mean(x, axis=[1, 2])))  # [B, S*C]
        return tf.reshape(y, [-1, self.num_tokens, x.shape[-1]]), None  # [B, S, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_tokens": self.num_tokens}


# "bottleneck" is the paper's in X(2+1)D. "v1.1" alone takes cells [B, H*W, C], "volume"
# alone whole clips [B, T, H, W, C].
TOKENIZERS = {
    "bottleneck": token_learner.BottleneckTokenLearner,
    "v1.0": token_learner.TokenLearner,
    "v1.1": token_learner.TokenLearnerV11,
    "grid": GridTokens,
    "dense": DenseTokens,
    "pooled": PooledTokens,
    "volume": volume_token_learner.VolumeTokenLearner,
}
WITHOUT_MAPS = ("grid", "dense", "pooled")


def _is_split(num_tokens: int, rows: int) -> bool:
    return num_tokens % rows == 0 and rows * rows <= num_tokens
