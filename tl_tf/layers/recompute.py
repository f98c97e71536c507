"""Less memory for more work: what the backward pass computes anew, and when."""

import contextlib
import itertools
from collections.abc import Iterator

import tensorflow as tf
import tf_keras

IN_ORDER = "in_order"  # the scope of what only orders, and is no cost of a model


def call(layer: tf_keras.layers.Layer, x: tf.Tensor, *, seed: tf.Tensor | None):
    """layer(x, training=True, seed=seed), of which the backward pass keeps x alone.

    The same draws are drawn again, from the seed; moving statistics move once.

    Source: "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
    Args:
      layer: built; returns tensors, in a tuple or a dict if it likes.
      x: floating.
      seed: of every draw.
    """
    passes = itertools.count()

    def run(x: tf.Tensor):
        is_again = next(passes) > 0
        with _still_statistics(layer) if is_again else contextlib.nullcontext():
            return layer(x, training=True, seed=seed)

    return tf.recompute_grad(run)(x)


def after(x: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    """x, not before `first` is there; backwards, its gradient before that of `first`.

    What is independent would run at once, and be in memory at once.  XLA minds neither
    control dependencies nor, on CPUs, its own barriers: only numbers hold it.

    Args:
      x: floating.
      first: finite, of the same dtype.
    """

    @tf.custom_gradient
    def in_order(x, first):
        def gradient(dx):
            return dx, tf.zeros_like(first) + _zero_of(dx)

        return x + _zero_of(first), gradient

    with tf.name_scope(IN_ORDER):
        return in_order(x, first)


def _zero_of(x: tf.Tensor) -> tf.Tensor:
    """A zero that no compiler knows before x is there."""
    return 0.0 * tf.reshape(x, [-1])[0]


@contextlib.contextmanager
def _still_statistics(layer: tf_keras.layers.Layer) -> Iterator[None]:
    """While it is traced anew, a layer's moving statistics stay as they are."""
    norms = [
        part
        for part in layer.submodules
        if isinstance(part, tf_keras.layers.BatchNormalization)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
