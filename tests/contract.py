"""`check_layer`: what every layer promises, read from its docstring and checked."""

import inspect
import json
import re

import numpy as np
import tensorflow as tf
import tf_keras


def random_normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Draws float32 normal values; the same ones for the same seed."""
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return values.astype(np.float32)


def documented_shapes(layer, sizes: dict[str, int]) -> tuple[list, list]:
    """Reads the `Shapes:` line.  -> shapes of the inputs, shapes of the outputs."""
    doc = inspect.cleandoc(type(layer).__doc__)
    line = re.search(r"^Shapes: (.*?)(?=^\w+:|\Z)", doc, re.S | re.M).group(1)
    return tuple(
        [
            tuple(
                int(size) if size.isdigit() else sizes[size]
                for size in re.split(r",\s*", dims)
            )
            for dims in re.findall(r"\[([^]]*)\]", side)
        ]
        for side in line.split("->")
    )


def randomize(layer, seed: int = 1) -> None:
    """Replaces every weight by a random one: ones and zeros hide mistakes."""
    for i, weight in enumerate(layer.weights):
        values = random_normal(*weight.shape, seed=seed + i, scale=0.3)
        if "variance" in weight.name:
            values = np.abs(values) + 0.5
        weight.assign(values)


def check_layer(
    layer: tf_keras.layers.Layer,
    sizes: dict[str, int],
    *,
    zero_gradients: tuple[str, ...] = (),
) -> None:
    """Checks a layer against its docstring and itself.

    Documented output shapes, eager = graph = compiled, clips independent of each other,
    a gradient for every weight, the config's round trip, and the bfloat16 policy.

    Args:
      layer: freshly built, never called.
      sizes: what the letters of the `Shapes:` line stand for.
      zero_gradients: ends of the names of weights whose gradient is zero by theory.
    """
    input_shapes, output_shapes = documented_shapes(layer, sizes)
    inputs = [
        tf.constant(random_normal(*shape, seed=10 + i))
        for i, shape in enumerate(input_shapes)
    ]
    layer(*inputs)
    randomize(layer)
    outputs = _tensors(layer(*inputs))

    assert [tuple(y.shape) for y in outputs] == output_shapes
    assert all(np.isfinite(y).all() for y in outputs)
    for jit_compile in (False, True):
        function = tf.function(lambda *x: layer(*x), jit_compile=jit_compile)
        _assert_close(_tensors(function(*inputs)), outputs, tolerance=1e-5)
    first = _tensors(layer(*(x[:1] for x in inputs)))
    _assert_close(first, [y[:1] for y in outputs], tolerance=1e-5)
    _check_gradients(layer, inputs, outputs, zero_gradients)
    _check_config(layer, inputs, outputs)
    _check_bfloat16(layer, inputs, outputs)


def _tensors(outputs) -> list:
    """Lists a layer's tensors; the `Shapes:` line has no dict of endpoints, no None."""
    if not isinstance(outputs, tuple | list):
        outputs = [outputs]
    return [y for y in outputs if not isinstance(y, dict | None)]


def _assert_close(got: list, want: list, *, tolerance: float) -> None:
    assert len(got) == len(want)
    for y, expected in zip(got, want, strict=True):
        y = np.asarray(tf.cast(y, tf.float32))
        expected = np.asarray(expected)
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(y, expected, rtol=0, atol=limit)


def _check_gradients(layer, inputs, outputs, zero_gradients) -> None:
    direction = tf.constant(random_normal(*outputs[0].shape, seed=20))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(_tensors(layer(*inputs))[0] * direction)
    weights = layer.trainable_weights
    gradients = tape.gradient(loss, weights)
    missing = [w.name for w, g in zip(weights, gradients, strict=True) if g is None]
    assert not missing, f"no gradient reaches {missing}"
    sizes = {
        w.name.removesuffix(":0"): float(tf.reduce_max(tf.abs(g)))
        for w, g in zip(weights, gradients, strict=True)
    }
    for name, size in sizes.items():
        if name.endswith(zero_gradients or ("/none",)):
            assert size < 1e-4 * max(sizes.values()), f"{name} has a gradient"
        else:
            assert size > 1e-6 * max(sizes.values()), f"{name} has no gradient"


def _check_config(layer, inputs, outputs) -> None:
    config = json.loads(json.dumps(layer.get_config()))
    copy = type(layer).from_config(config)
    copy(*inputs)
    copy.set_weights(layer.get_weights())
    assert json.loads(json.dumps(copy.get_config())) == config
    _assert_close(_tensors(copy(*inputs)), outputs, tolerance=1e-6)


def _check_bfloat16(layer, inputs, outputs) -> None:
    config = layer.get_config()
    config.pop("dtype")
    policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        copy = type(layer).from_config(config)
        copy(*inputs)
        copy.set_weights(layer.get_weights())
        got = _tensors(tf.function(copy)(*inputs))
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)
    assert all(w.dtype == tf.float32 for w in copy.weights)
    assert got[0].dtype == tf.bfloat16
    _assert_close(got, outputs, tolerance=0.1)
