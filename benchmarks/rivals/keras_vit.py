"""ViT and TokenLearner v1.1 of Keras' own layers."""

from collections.abc import Callable

from benchmarks.rivals import sizes as sizes_lib
from tl_tf import startup

startup.quiet_tensorflow()

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

layers = tf_keras.layers


def _gelu(x):
    return tf.nn.gelu(x, approximate=True)


def _token_learner(x, num_tokens: int):
    scores = layers.LayerNormalization(epsilon=1e-6)(x)
    scores = layers.Dense(64, activation=_gelu)(scores)
    maps = layers.Softmax(axis=1)(layers.Dense(num_tokens)(scores))  # [B, N, S]
    return layers.Dot(axes=1)([maps, x])  # [B, S, C]


class _Position(layers.Layer):
    def build(self, input_shape):
        self.table = self.add_weight("position", shape=(1, *input_shape[1:]))

    def call(self, x):
        return x + tf.cast(self.table, x.dtype)


def _model(sizes: sizes_lib.Sizes) -> tf_keras.Model:
    images = layers.Input([sizes.image_px, sizes.image_px, 3])
    x = layers.Conv2D(sizes.hidden_size, sizes.patch_px, sizes.patch_px)(images)
    x = layers.Reshape([(sizes.image_px // sizes.patch_px) ** 2, sizes.hidden_size])(x)
    x = _Position()(x)
    for i in range(sizes.depth):
        if i == sizes.insert_before_block:
            x = _token_learner(x, sizes.num_tokens)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        size = sizes.hidden_size // sizes.num_heads
        x += layers.MultiHeadAttention(sizes.num_heads, size)(y, y)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(sizes.mlp_size, activation=_gelu)(y)
        x += layers.Dense(sizes.hidden_size)(y)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    logits = layers.Dense(sizes_lib.NUM_CLASSES, dtype="float32")(x)
    return tf_keras.Model(images, logits)


def build(
    sizes: sizes_lib.Sizes, what: str, precision: str, is_compiled: bool = True
) -> Callable[[], None]:
    """The function to time: `what` is "forward" or "step"."""
    if precision == "bfloat16":
        tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    return timed(_model(sizes), sizes, what, is_compiled=is_compiled)


def timed(
    model: tf_keras.Model,
    sizes: sizes_lib.Sizes | sizes_lib.ClipSizes,
    what: str,
    *,
    is_compiled: bool,
) -> Callable[[], None]:
    """A forward pass or a step of a model."""
    shape = [sizes.batch_size, *sizes.input_shape]
    images = tf.random.stateless_uniform(shape, [1, 2], -1.0, 1.0)
    labels = tf.range(sizes.batch_size)
    if what == "forward":

        @tf.function(jit_compile=is_compiled)
        def forward(images):
            return model(images, training=False)

        return lambda: forward(images).numpy()
    optimizer = tf_keras.optimizers.SGD(
        sizes_lib.LEARNING_RATE, momentum=sizes_lib.MOMENTUM
    )
    optimizer.build(model.trainable_variables)
    loss_of = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile=is_compiled)
    def step(images):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        weights = model.trainable_variables
        gradients = tape.gradient(loss, weights)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return loss

    return lambda: step(images).numpy()
