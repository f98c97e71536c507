"""Any video model, fed with what changes from frame to frame."""

from collections.abc import Callable

import gin
import tensorflow as tf
import tf_keras


class OnDifferences(tf_keras.Model):
    """Hands a video model the difference of each frame from the one before.

    What stands still is not seen: a few hundred videos show a model too few places to
    tell a place from what happens there.

    Shapes: frames [B, T, H, W, 3] -> [B, K]
    Source: ours.
    Args: as `build_on_differences`; model is a built one.
    """

    def __init__(self, model: tf_keras.Model, *, gain: float, **kwargs):
        super().__init__(**kwargs)
        self.model = model
        self.gain = gain

    def call(
        self, frames: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns float32 logits and the endpoints of the model.

        Args:
          frames: -1..1; of the size that the model was built for.
          training: as the model's.
          seed: as the model's.
        """
        changes = differences(frames, gain=self.gain)  # [B, T, H, W, 3]
        # Not __call__: a second name scope would show in the cost table.
        return self.model.call(changes, training=training, seed=seed)


def differences(frames: tf.Tensor, *, gain: float) -> tf.Tensor:
    """[B, T, H, W, 3] of each frame from the one before; the first frame's are zero."""
    before = tf.concat([frames[:, :1], frames[:, :-1]], axis=1)  # [B, T, H, W, 3]
    return gain * (frames - before)


@gin.configurable
def build_on_differences(
    num_classes: int = gin.REQUIRED,
    *,
    build_model: Callable[..., tf_keras.Model] = gin.REQUIRED,
    gain: float = 4.0,
) -> OnDifferences:
    """Builds a video model that is fed with differences of frames.

    Args:
      num_classes: K, at least 1.
      build_model: a function of the number of classes, as @build_x2p1d.
      gain: by which differences are multiplied, above 0: most are small.

    Raises:
      ValueError: an argument is out of range; names the binding to change.
    """
    if gain <= 0:
        raise ValueError(
            f"differences: gain must be > 0, got {gain}. Set build_on_differences.gain"
            " in the model's gin file."
        )
    model = build_model(num_classes)
    wrapped = OnDifferences(model, gain=gain, name=model.name)
    wrapped.built = True  # the model inside has all the variables
    return wrapped
