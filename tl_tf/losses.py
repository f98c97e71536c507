"""Losses per clip, and the scores that go with each."""

import dataclasses

import gin
import tensorflow as tf

KINDS = ("sigmoid", "softmax")


@dataclasses.dataclass(frozen=True)
class Loss:
    """A classification loss on logits; see `build_loss`."""

    kind: str
    label_smoothing: float = 0.0

    def __call__(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Loss of every clip, in float32.

        sigmoid is the MEAN over the classes of the binary cross entropies: the rates of
        App. B.3 (0.8 per core, 51.2 in all) only make sense with it.

        Shapes: logits [B, K], labels [B, K] -> [B]
        """
        logits = tf.cast(logits, tf.float32)
        labels = tf.cast(labels, tf.float32)
        if self.kind == "sigmoid":
            labels = labels * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
            entropies = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            return tf.reduce_mean(entropies, axis=-1)  # [B]
        classes = labels.shape[-1]
        labels = labels * (1 - self.label_smoothing) + self.label_smoothing / classes
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits)  # [B]

    def scores(self, logits: tf.Tensor) -> tf.Tensor:
        """Probabilities [..., K] of logits [..., K], in float32."""
        logits = tf.cast(logits, tf.float32)
        return tf.sigmoid(logits) if self.kind == "sigmoid" else tf.nn.softmax(logits)


@gin.configurable
def build_loss(kind: str = gin.REQUIRED, *, label_smoothing: float = 0.0) -> Loss:
    """The loss of a recipe.

    Args:
      kind: "sigmoid" for several labels a video, averaged over the classes; "softmax"
        for exactly one.
      label_smoothing: in 0..1, the share of the target that is spread evenly (App. B.3:
        0.2 for AViD, none for Charades).

    Raises:
      ValueError: for another kind or a share out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"build_loss.kind must be one of {KINDS}, got {kind!r}.")
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"build_loss.label_smoothing must be in [0, 1), got {label_smoothing}."
        )
    return Loss(kind, label_smoothing)
