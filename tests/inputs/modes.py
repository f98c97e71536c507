"""Runs a pipeline function eagerly and inside Dataset.map."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def run_both(function: Callable[..., tf.Tensor], *args) -> np.ndarray:
    """The result of function(*args); asserts that both modes give the same."""
    eager = function(*map(tf.constant, args)).numpy()
    dataset = tf.data.Dataset.from_tensors(tuple(map(tf.constant, args)))
    (mapped,) = dataset.map(function).as_numpy_iterator()
    np.testing.assert_array_equal(eager, mapped)
    return eager
