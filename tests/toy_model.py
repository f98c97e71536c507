"""A model small enough to differentiate by hand, with the contract of the real ones."""

import functools

import numpy as np
import tensorflow as tf
import tf_keras

T, H, W, K = 3, 5, 7, 4


@functools.cache
def two_replicas() -> tf.distribute.Strategy:
    """One for the whole process: two strategies' collectives would collide."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


class ToyModel(tf_keras.Model):
    """logits = mean over time and pixels, times a kernel [3, K]; then dropout."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate
        kernel = np.random.default_rng(7).normal(size=[3, K])
        self.kernel = tf.Variable(kernel, dtype=tf.float32, name="kernel")

    def call(self, frames, training=False, seed=None):
        pooled = tf.reduce_mean(tf.cast(frames, tf.float32), axis=[1, 2, 3])  # [B, 3]
        if training and self.rate:
            pooled = tf.nn.experimental.stateless_dropout(pooled, self.rate, seed)
        logits = pooled @ self.kernel  # [B, K]
        maps = tf.reduce_mean(tf.cast(frames, tf.float32), -1, keepdims=True)
        return logits, {"block_0/token_maps": maps, "pooled": pooled}


def batches(batch_size: int, *, count: int = 20, seed: int = 3) -> tf.data.Dataset:
    """Random clips and labels, repeated for ever."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, [count, batch_size, T, H, W, 3], dtype=np.uint8)
    labels = rng.integers(0, 2, [count, batch_size, K]).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices({"pixels": frames, "labels": labels})
    return data.repeat()
