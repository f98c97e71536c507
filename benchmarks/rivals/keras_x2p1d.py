"""X(2+1)D's backbone of Keras' own layers: Conv3D with a side of 1."""

from collections.abc import Callable

from benchmarks.rivals import keras_vit
from benchmarks.rivals import sizes as sizes_lib

tf_keras, layers = keras_vit.tf_keras, keras_vit.layers


def _conv(x, filters: int, kernel: tuple[int, int, int], stride: int = 1):
    return layers.Conv3D(
        filters, kernel, strides=(1, stride, stride), padding="same", use_bias=False
    )(x)


def _norm(x):
    return layers.BatchNormalization(
        momentum=sizes_lib.BATCH_NORM_MOMENTUM, epsilon=sizes_lib.BATCH_NORM_EPSILON
    )(x)


def _model(sizes: sizes_lib.ClipSizes) -> tf_keras.Model:
    relu = layers.ReLU
    frames = layers.Input(sizes.input_shape)
    x = _conv(frames, sizes_lib.STAGES[0][0], (1, 3, 3), 2)
    x = relu()(_norm(_conv(x, x.shape[-1], (5, 1, 1))))
    for filters, inner, depth in sizes_lib.STAGES:
        for i in range(depth):
            stride = 2 if i == 0 else 1
            y = relu()(_norm(_conv(x, inner, (1, 1, 1))))
            y = relu()(_norm(_conv(y, inner, (1, 3, 3), stride)))
            y = relu()(_norm(_conv(y, inner, (3, 1, 1))))
            y = _norm(_conv(y, filters, (1, 1, 1)))
            if i == 0:
                x = _norm(_conv(x, filters, (1, 1, 1), stride))
            x = relu()(x + y)
    x = relu()(_norm(_conv(x, sizes_lib.STAGES[-1][1], (1, 1, 1))))
    x = layers.Dense(sizes_lib.HEAD_FILTERS, activation="relu", use_bias=False)(x)
    x = layers.GlobalAveragePooling3D()(x)
    x = layers.Dropout(sizes_lib.DROPOUT_RATE)(x)
    logits = layers.Dense(sizes_lib.NUM_CLASSES, dtype="float32")(x)
    return tf_keras.Model(frames, logits)


def build(
    sizes: sizes_lib.ClipSizes, what: str, precision: str, is_compiled: bool = True
) -> Callable[[], None]:
    """The function to time: `what` is "forward" or "step"."""
    if precision == "bfloat16":
        tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    return keras_vit.timed(_model(sizes), sizes, what, is_compiled=is_compiled)
