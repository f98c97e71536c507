"""The pre-norm Transformer block of ViT, and the dropouts it shares with the models.

Softmax runs in float32 at least, and so do, in Keras, the statistics of LayerNorm.
All dropout is stateless: the caller hands a seed over.
"""

import functools
import math

import tensorflow as tf
import tf_keras

from tl_tf.layers import recompute

LAYER_NORM_EPSILON = 1e-6  # the authors' code (Flax default); Keras has 1e-3
WHOLE_SCORES = 2048**2  # of a head: up to here they are held whole
CHUNK_QUERIES = 512  # at once, beyond


def gelu(x: tf.Tensor) -> tf.Tensor:
    """The tanh form, as Flax computes it."""
    return tf.nn.gelu(x, approximate=True)


def at_least_float32(x: tf.Tensor) -> tf.Tensor:
    """In what softmax and sigmoid run, whatever the precision policy says."""
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x


def layer_norm(name: str) -> tf_keras.layers.Layer:
    """LayerNorm over the channels, with Flax's epsilon."""
    return tf_keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=name)


def dropout(
    x: tf.Tensor, rate: float, *, training: bool, seed: tf.Tensor | None, draw: int
) -> tf.Tensor:
    """Dropout keyed by a seed, so that a resumed run draws what an unbroken one does.

    Args:
      x: any shape.
      rate: share of the elements set to zero, in [0, 1).
      training: False returns x.
      seed: int32 [2]; needed in training unless the rate is 0.
      draw: tells the draws of one seed apart.

    Raises:
      ValueError: the seed is missing.
    """
    if not training or rate == 0:
        return x
    seed = tf.random.fold_in(required(seed), draw)
    return tf.nn.experimental.stateless_dropout(x, rate=rate, seed=seed)


def drop_path(
    x: tf.Tensor, rate: float, *, training: bool, seed: tf.Tensor | None, draw: int
) -> tf.Tensor:
    """Stochastic depth: drops the whole of some examples, scales the rest up.

    Source: "Deep Networks with Stochastic Depth", arXiv 1603.09382; the scaling keeps
      the expectation, so that nothing is left to do in evaluation.
    Args: as `dropout`; x is [B, ...].
    Raises:
      ValueError: the seed is missing.
    """
    if not training or rate == 0:
        return x
    seed = tf.random.fold_in(required(seed), draw)
    draws = tf.random.stateless_uniform([x.shape[0] or tf.shape(x)[0]], seed)  # [B]
    keep = tf.cast(draws >= rate, x.dtype) / (1 - rate)
    return x * tf.reshape(keep, [-1] + [1] * (len(x.shape) - 1))


def required(seed: tf.Tensor | None) -> tf.Tensor:
    """The seed; raises a ValueError where there is none."""
    if seed is None:
        raise ValueError("training with dropout needs a seed, int32 [2], got None.")
    return seed


class Mlp(tf_keras.layers.Layer):
    """Two dense layers with a gelu between; as wide at its end as at its start.

    Shapes: x [B, L, C] -> [B, L, C]
    Source: ViT, arXiv 2010.11929, equation 3; dropout after both, as the authors' code.
    Args:
      hidden_size: of the inner layer, at least 1.
      dropout_rate: in [0, 1).
    """

    def __init__(self, hidden_size: int, dropout_rate: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.dropout_rate = dropout_rate
        self.hidden = tf_keras.layers.Dense(
            hidden_size, bias_initializer=_tiny_bias(), name="hidden"
        )

    def build(self, input_shape) -> None:
        """Creates the outer layer, which is as wide as the input."""
        self.out = tf_keras.layers.Dense(
            input_shape[-1], bias_initializer=_tiny_bias(), name="out"
        )
        super().build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False, seed=None) -> tf.Tensor:
        """Returns the transformed tokens, without the residual."""
        rate = self.dropout_rate
        x = gelu(self.hidden(x))  # [B, L, hidden]
        x = dropout(x, rate, training=training, seed=seed, draw=0)
        x = self.out(x)  # [B, L, C]
        return dropout(x, rate, training=training, seed=seed, draw=1)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_size": self.hidden_size,
            "dropout_rate": self.dropout_rate,
        }


def attend(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    *,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    seed: tf.Tensor | None = None,
) -> tf.Tensor:
    """The softmax attention of each head's queries over its keys.

    Beyond WHOLE_SCORES the queries come in chunks, one chunk after the other, and the
    backward pass computes the weights of each anew: [A, L, M] are never held, at the
    price of a second product of queries and keys.

    Shapes: q [B, L, A, D], k [B, M, A, D], v [B, M, A, E] -> [B, L, A, E]
    Source: ViT, arXiv 2010.11929, Appendix A; in chunks, "Self-attention Does Not Need
      O(n^2) Memory", arXiv 2112.05682, which chunks the keys as well.
    Args:
      q: scaled, unless `scale` is given.
      k: the keys.
      v: the values.
      scale: of the scores.
      dropout_rate: of the weights, in [0, 1); each chunk has draws of its own.
      seed: int32 [2]; needed unless the rate is 0.

    Raises:
      ValueError: the seed is missing.
    """
    q, k, v = (tf.transpose(x, [0, 2, 1, 3]) for x in (q, k, v))  # [B, A, L|M, D]

    def attend_whole(q, k, v, seed):
        scores = at_least_float32(tf.matmul(q, k, transpose_b=True))  # [B, A, L, M]
        weights = tf.nn.softmax(scores if scale is None else scores * scale)
        weights = tf.cast(weights, v.dtype)  # sums to 1 over M
        weights = dropout(weights, dropout_rate, training=True, seed=seed, draw=0)
        return tf.matmul(weights, v)  # [B, A, L, E]

    length = q.shape[2]
    if length * k.shape[2] <= WHOLE_SCORES:
        y = attend_whole(q, k, v, seed)
    else:
        count = math.ceil(length / CHUNK_QUERIES)
        sizes = [(length + i) // count for i in range(count)]
        done = []
        for i, some in enumerate(tf.split(q, sizes, axis=2)):
            if done:
                some = recompute.after(some, done[-1])
            some_seed = None if seed is None else tf.random.fold_in(seed, i)
            run = functools.partial(attend_whole, seed=some_seed)
            done.append(tf.recompute_grad(run)(some, k, v))
        y = tf.concat(done, axis=2)  # [B, A, L, E]
    return tf.transpose(y, [0, 2, 1, 3])  # [B, L, A, E]


class Attention(tf_keras.layers.Layer):
    """Multi-head attention of queries x over the tokens y; y is x in self-attention.

    Shapes: x [B, L, C], y [B, M, C] -> [B, L, C]
    Source: ViT, arXiv 2010.11929, Appendix A. Kernels are [C, A, C / A] and, at the
      end, [A, C / A, C], as in Flax.
    Args:
      num_heads: A; C must be a multiple.
      dropout_rate: of the attention weights, in [0, 1).
    Raises:
      ValueError: C is not a multiple of num_heads.
    """

    def __init__(self, num_heads: int, dropout_rate: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate

    def build(self, input_shape) -> None:
        """Creates the four projections."""
        channels, heads = input_shape[-1], self.num_heads
        if channels % heads:
            raise ValueError(
                f"{self.name}: wanted channels that are a multiple of"
                f" num_heads={heads}, got {channels}."
            )
        size = channels // heads
        # Keras takes the leading axes of a kernel for a receptive field; the scales
        # make up for it, so that the values are Glorot's of a [C, C] matrix.
        self.query, self.key, self.value = (
            tf_keras.layers.EinsumDense(
                "blc,cad->blad",
                output_shape=[None, heads, size],
                bias_axes="ad",
                kernel_initializer=_glorot((heads + size) / 2),
                name=name,
            )
            for name in ("query", "key", "value")
        )
        self.out = tf_keras.layers.EinsumDense(
            "blad,adc->blc",
            output_shape=[None, channels],
            bias_axes="c",
            kernel_initializer=_glorot((heads + 1) / 2),
            name="out",
        )
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, y: tf.Tensor, training: bool = False, seed=None
    ) -> tf.Tensor:
        """Returns the attended tokens, without the residual."""
        y = tf.cast(y, x.dtype)  # a Keras policy casts the first argument only
        q, k, v = self.query(x), self.key(y), self.value(y)  # [B, L|M, A, D]
        q *= q.shape[-1] ** -0.5
        rate = self.dropout_rate if training else 0.0
        return self.out(attend(q, k, v, dropout_rate=rate, seed=seed))  # [B, L, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout_rate": self.dropout_rate,
        }


class EncoderBlock(tf_keras.layers.Layer):
    """LayerNorm, self-attention, add; LayerNorm, MLP, add.

    Shapes: x [B, L, C] -> [B, L, C]
    Source: ViT, arXiv 2010.11929, equations 2 and 3.
    Args:
      num_heads: of the attention.
      mlp_size: width of the MLP's inner layer.
      dropout_rate: after attention and in the MLP, in [0, 1).
      attention_dropout_rate: of the attention weights, in [0, 1).
      drop_path_rate: of either branch, per example, in [0, 1).
    """

    def __init__(
        self,
        num_heads: int,
        mlp_size: int,
        *,
        dropout_rate: float = 0.0,
        attention_dropout_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_size = mlp_size
        self.dropout_rate = dropout_rate
        self.attention_dropout_rate = attention_dropout_rate
        self.drop_path_rate = drop_path_rate
        self.attention_norm = layer_norm("attention_norm")
        self.attention = Attention(num_heads, attention_dropout_rate, name="attention")
        self.mlp_norm = layer_norm("mlp_norm")
        self.mlp = Mlp(mlp_size, dropout_rate, name="mlp")

    def call(self, x: tf.Tensor, training: bool = False, seed=None) -> tf.Tensor:
        """Returns the tokens after the block."""
        tf.debugging.assert_shapes([(x, ("B", "L", "C"))], message=self.name)
        seeds = [None] * 3 if seed is None else tf.unstack(tf.random.split(seed, 3))
        keys = {"training": training, "seed": seeds[2]}

        y = self.attention_norm(x)
        y = self.attention(y, y, training=training, seed=seeds[0])
        y = dropout(y, self.dropout_rate, draw=0, **keys)
        x += drop_path(y, self.drop_path_rate, draw=1, **keys)

        y = self.mlp(self.mlp_norm(x), training=training, seed=seeds[1])
        return x + drop_path(y, self.drop_path_rate, draw=2, **keys)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_size": self.mlp_size,
            "dropout_rate": self.dropout_rate,
            "attention_dropout_rate": self.attention_dropout_rate,
            "drop_path_rate": self.drop_path_rate,
        }


def _glorot(scale: float) -> tf_keras.initializers.Initializer:
    return tf_keras.initializers.VarianceScaling(
        scale=scale, mode="fan_avg", distribution="uniform"
    )


def _tiny_bias() -> tf_keras.initializers.Initializer:
    return tf_keras.initializers.RandomNormal(stddev=1e-6)  # the authors' code
