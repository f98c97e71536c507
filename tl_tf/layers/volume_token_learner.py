"""TokenLearner over space-time volumes: what Section 8 leaves open."""

import tensorflow as tf
import tf_keras

from tl_tf.layers import attention, token_learner


class VolumeTokenLearner(tf_keras.layers.Layer):
    """Summarises every window of T' frames as S learned tokens, not every frame.

    The token maps weigh all T' * H * W cells of a window together, and come from a
    convolution over space and one over time, so that what moves can be told from what
    stands still. A clip has S * T / T' learned tokens.

    Shapes: x [B, T, H, W, C] -> [B, M, S, C], [B, T, H, W, S]
    Source: Section 8 ("mine tokens over space-time volumes") names the problem; this
      is the bottleneck form of Section 6.1, its convolution taken apart as X(2+1)D
      takes its own, its average over a window. M is T / T'.
    Args:
      num_tokens: S of a window, at least 1.
      window_frames: T', a divisor of T.
    Raises:
      ValueError: num_tokens or window_frames is below 1; T is not a multiple of T'.
    """

    def __init__(self, num_tokens: int, window_frames: int = 1, **kwargs):
        super().__init__(**kwargs)
        token_learner.check_num_tokens(self.name, num_tokens)
        if window_frames < 1:
            raise ValueError(
                f"{self.name}: window_frames must be >= 1, got {window_frames}."
            )
        self.num_tokens = num_tokens
        self.window_frames = window_frames
        self.spatial_scores = tf_keras.layers.Conv2D(
            num_tokens, kernel_size=3, padding="same", name="spatial_scores"
        )
        self.temporal_scores = tf_keras.layers.Conv2D(
            num_tokens, kernel_size=(3, 1), padding="same", name="temporal_scores"
        )

    def build(self, input_shape) -> None:
        """Checks that the windows fill the clip."""
        frames = input_shape[1]
        if frames is None or frames % self.window_frames:
            raise ValueError(
                f"{self.name}: wanted a number of frames that is a multiple of"
                f" window_frames={self.window_frames}, got {frames}."
            )
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the learned tokens of every window and the token maps."""
        tf.debugging.assert_shapes([(x, ("B", "T", "H", "W", "C"))], message=self.name)
        _, t, h, w, c = x.shape
        s, window = self.num_tokens, self.window_frames
        scores = self.spatial_scores(tf.reshape(x, [-1, h, w, c]))  # [B*T, H, W, S]
        scores = tf.reshape(scores, [-1, t, h * w, s])  # [B, T, H*W, S]
        scores = self.temporal_scores(tf.nn.relu(scores))  # [B, T, H*W, S]
        maps = tf.nn.sigmoid(attention.at_least_float32(scores))
        by_window = [-1, t // window, window * h * w]
        weights = tf.reshape(tf.cast(maps, x.dtype), [*by_window, s])  # [B, M, N, S]
        cells = tf.reshape(x, [*by_window, c])  # [B, M, N, C]
        tokens = tf.einsum("bmns,bmnc->bmsc", weights, cells) / by_window[-1]
        return tokens, tf.reshape(maps, [-1, t, h, w, s])

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "window_frames": self.window_frames,
        }
