"""What may stand between the 1x1 convolutions of a bottleneck block (Section 6).

GridAttention lets the cells of a clip attend to each other; TokenModule goes from the
grid to tokens, lets those attend, and writes them back. Both take clips
[B, T, H, W, C] and share TRANSFORMERS, layers among tokens [B, N, C].
"""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras

from tl_tf.layers import (
    alternatives,
    attention,
    nested_tokens,
    token_learner,
    tokenizers,
    vector_attention,
)

KEY_SIZE = 16  # of a head: Table XII's costs fit q and k of 128 channels, 8 heads
AXES = ("joint", "temporal", "spatial")
TRANSFORMERS = ("vector", "mhsa", "prior", "mlp_mixer")
RESTORES = ("fuser", "broadcast", "unpool")
BY_TOKEN = ("prior", "mlp_mixer")  # transformers with weights for each token


def _projection(channels: int, name: str) -> tf_keras.layers.Layer:
    return tf_keras.layers.Dense(channels, use_bias=False, name=name)


class Mhsa(tf_keras.layers.Layer):
    """Multi-head self-attention without biases and output projection.

    Shapes: x [B, N, C] -> [B, N, C]
    Source: Section 6.3.1, "the standard multi-head self-attention (MHSA) with 8 heads".
      Table XII's costs fit heads with keys of 16 channels, values of C / A, scores that
      are scaled one by one, and nothing else.
    Args:
      num_heads: A; C must be a multiple.
    Raises:
      ValueError: C is not a multiple of num_heads.
    """

    def __init__(self, num_heads: int = 8, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, input_shape) -> None:
        """Creates the three projections."""
        channels = input_shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                f"{self.name}: wanted channels that are a multiple of"
                f" num_heads={self.num_heads}, got {channels}. Change num_heads."
            )
        self.query = _projection(self.num_heads * KEY_SIZE, "query")
        self.key = _projection(self.num_heads * KEY_SIZE, "key")
        self.value = _projection(channels, "value")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the attended tokens."""
        tf.debugging.assert_shapes([(x, ("B", "N", "C"))], message=self.name)
        _, n, c = x.shape

        def heads(y):
            return tf.reshape(y, [-1, n, self.num_heads, y.shape[-1] // self.num_heads])

        q, k, v = (heads(f(x)) for f in (self.query, self.key, self.value))
        y = attention.attend(q, k, v, scale=KEY_SIZE**-0.5)  # [B, N, A, C / A]
        return tf.reshape(y, [-1, n, c])  # [B, N, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_heads": self.num_heads}


class PriorAttention(tf_keras.layers.Layer):
    """Attention whose weights are learned, and the same for every input.

    Shapes: x [B, N, C] -> [B, N, C]
    Source: Table XIV, "prior-only-attention".
    Differs: the paper does not define it. This is the plainest reading of its name: the
      softmax of a learned [N, N] matrix, one for all channels, in place of one of
      queries and keys; it starts as a mean over all tokens.
    """

    def build(self, input_shape) -> None:
        """Creates the scores of each token for each, and the values' projection."""
        _, n, c = input_shape
        self.scores = self.add_weight(name="scores", shape=(n, n), initializer="zeros")
        self.value = _projection(c, "value")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the attended tokens."""
        tf.debugging.assert_shapes([(x, ("B", "N", "C"))], message=self.name)
        weights = tf.nn.softmax(attention.at_least_float32(self.scores))  # [N, N]
        v = self.value(x)
        return tf.einsum("nm,bmc->bnc", tf.cast(weights, v.dtype), v)  # [B, N, C]


class MlpMixer(tf_keras.layers.Layer):
    """An MLP among the tokens of a channel, then one among the channels of a token.

    Shapes: x [B, N, C] -> [B, N, C]
    Source: "MLP-Mixer", arXiv 2105.01601, equation 1; Table XIII. Its cost fits inner
      layers as wide as the outer ones, N and C.
    """

    def build(self, input_shape) -> None:
        """Creates both MLPs, as wide as the input."""
        _, n, c = input_shape
        self.token_norm = attention.layer_norm("token_norm")
        self.token_mlp = attention.Mlp(n, name="token_mlp")
        self.channel_norm = attention.layer_norm("channel_norm")
        self.channel_mlp = attention.Mlp(c, name="channel_mlp")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the mixed tokens."""
        tf.debugging.assert_shapes([(x, ("B", "N", "C"))], message=self.name)
        y = tf.transpose(self.token_norm(x), [0, 2, 1])  # [B, C, N]
        x += tf.transpose(self.token_mlp(y), [0, 2, 1])  # [B, N, C]
        return x + self.channel_mlp(self.channel_norm(x))


def build_transformer(kind: str, *, num_heads: int) -> tf_keras.layers.Layer:
    """Builds one of TRANSFORMERS; num_heads is the MHSA's."""
    if kind == "mhsa":
        return Mhsa(num_heads, name="transformer")
    layers = {
        "vector": vector_attention.VectorTransformer,
        "prior": PriorAttention,
        "mlp_mixer": MlpMixer,
    }
    return layers[kind](name="transformer")


class GridAttention(tf_keras.layers.Layer):
    """Lets cells attend to each other: all of a clip, of a frame, or of a place.

    Shapes: x [B, T, H, W, C] -> [B, T, H, W, C]
    Source: Sections 6.3.1 and 6.3.2, Tables XII and XIII.
    Differs: the paper says no word of position embeddings; there are none, and an order
      of frames or places is what the convolutions before leave in the cells.
    Args:
      axes: "joint" (over T, H and W), "temporal" (over T) or "spatial" (over H and W).
      transformer: "mhsa" (the paper's here) or "vector".
      num_heads: of the MHSA; C must be a multiple.
    Raises:
      ValueError: axes or transformer is unknown; the other transformers have weights
        for each token, and the grid has no fixed size.
    """

    def __init__(
        self, axes: str, transformer: str = "mhsa", *, num_heads: int = 8, **kwargs
    ):
        super().__init__(**kwargs)
        token_learner.check_choice(self.name, "axes", axes, AXES)
        token_learner.check_choice(
            self.name, "transformer", transformer, ("mhsa", "vector")
        )
        self.axes = axes
        self.transformer_form = transformer
        self.num_heads = num_heads
        self.transformer = build_transformer(transformer, num_heads=num_heads)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the attended clip."""
        tf.debugging.assert_shapes([(x, ("B", "T", "H", "W", "C"))], message=self.name)
        _, t, h, w, c = x.shape
        if self.axes == "temporal":
            x = tf.transpose(x, [0, 2, 3, 1, 4])  # [B, H, W, T, C]
            y = self.transformer(tf.reshape(x, [-1, t, c]))  # [B*H*W, T, C]
            y = tf.reshape(y, [-1, h, w, t, c])  # [B, H, W, T, C]
            return tf.transpose(y, [0, 3, 1, 2, 4])  # [B, T, H, W, C]
        tokens = h * w if self.axes == "spatial" else t * h * w
        y = self.transformer(tf.reshape(x, [-1, tokens, c]))
        return tf.reshape(y, [-1, t, h, w, c])  # [B, T, H, W, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "axes": self.axes,
            "transformer": self.transformer_form,
            "num_heads": self.num_heads,
        }


class TokenModule(tf_keras.layers.Layer):
    """A tokenizer, a transformer over all tokens of a clip, and the way back.

    The defaults are the paper's: TokenLearner, Vector Transformer, TokenFuser. Returns
    the clip, the tokens and the token maps, None where the tokenizer has none. M is the
    number of windows: T, but for tokenizer "volume".

    Shapes: x [B, T, H, W, C] -> [B, T, H, W, C], [B, M, S, C], [B, T, H, W, S]
    Source: Section 6.1, Figure 9 and Appendix A; Section 6.3.3 and Table XIV for the
      other parts.
    Differs: Table XIV has "broadcasting", which the paper does not define: here each
      cell gets the mean of its frame's tokens, and as in equation 2 keeps itself.
    Args:
      num_tokens: S per frame, at least 1.
      tokenizer: one of `tokenizers.TOKENIZERS`.
      transformer: one of TRANSFORMERS.
      num_heads: of the MHSA; C must be a multiple.
      restore: "fuser" (TokenFuser), "broadcast", or "unpool" (by the tokenizer's own
        maps, Section 3.5.3).
      mixing: as in `TokenFuser`.
      beta: as in `TokenFuser`.
      use_norm: as in `TokenFuser`.
      zero_init: as in `TokenFuser`.
      use_projection: as in `BottleneckTokenLearner`; the other tokenizers have none.
      dense_grid: as `grid` in `DenseTokens`; the other tokenizers have none.
      window_frames: as in `VolumeTokenLearner`; the other tokenizers know one frame.
      nested_dropout: each clip keeps the first so many of its tokens in training, see
        `nested_tokens`.
      used_tokens: of the S, in inference; a divisor, or None for all. The tokenizer
        still makes all of them.
    Raises:
      ValueError: a choice is unknown; the tokenizer has no projection, no maps or no
        windows; a transformer that tells tokens apart has fewer of them.
    """

    def __init__(
        self,
        num_tokens: int = 8,
        tokenizer: str = "bottleneck",
        *,
        transformer: str = "vector",
        num_heads: int = 8,
        restore: str = "fuser",
        mixing: str = "joint",
        beta: str = "linear",
        use_norm: bool = False,
        zero_init: bool = False,
        use_projection: bool = False,
        dense_grid: Sequence[int] = (7, 7),
        window_frames: int = 1,
        nested_dropout: bool = False,
        used_tokens: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        known = tuple(tokenizers.TOKENIZERS)
        token_learner.check_choice(self.name, "tokenizer", tokenizer, known)
        token_learner.check_choice(self.name, "transformer", transformer, TRANSFORMERS)
        token_learner.check_choice(self.name, "restore", restore, RESTORES)
        if use_projection and tokenizer != "bottleneck":
            raise ValueError(
                f"{self.name}: use_projection needs tokenizer='bottleneck', got "
                f"{tokenizer!r}."
            )
        if restore == "unpool" and tokenizer in tokenizers.WITHOUT_MAPS:
            raise ValueError(
                f"{self.name}: restore='unpool' needs a tokenizer with token maps, got "
                f"{tokenizer!r}."
            )
        if window_frames != 1 and tokenizer != "volume":
            raise ValueError(
                f"{self.name}: window_frames={window_frames} needs tokenizer='volume',"
                f" got {tokenizer!r}."
            )
        nested_tokens.check_used_tokens(self.name, used_tokens, num_tokens)
        if transformer in BY_TOKEN and (nested_dropout or used_tokens is not None):
            raise ValueError(
                f"{self.name}: nested_dropout and used_tokens need a transformer that"
                f" treats all tokens alike, got {transformer!r}."
            )
        self.num_tokens = num_tokens
        self.tokenizer = tokenizer
        self.transformer_form = transformer
        self.num_heads = num_heads
        self.restore = restore
        self.mixing = mixing
        self.beta = beta
        self.use_norm = use_norm
        self.zero_init = zero_init
        self.use_projection = use_projection
        self.dense_grid = tuple(dense_grid)
        self.window_frames = window_frames
        self.nested_dropout = nested_dropout
        self.used_tokens = used_tokens

        options = {}
        if tokenizer == "bottleneck":
            options = {"use_projection": use_projection}
        elif tokenizer == "dense":
            options = {"grid": dense_grid}
        elif tokenizer == "volume":
            options = {"window_frames": window_frames}
        self.token_learner = tokenizers.TOKENIZERS[tokenizer](
            num_tokens, **options, name="token_learner"
        )
        self.transformer = build_transformer(transformer, num_heads=num_heads)
        if restore == "fuser":
            self.token_fuser = token_learner.TokenFuser(
                mixing,
                beta,
                use_norm=use_norm,
                zero_init=zero_init,
                name="token_fuser",
            )

    def call(
        self, x: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Returns the clip, the tokens and the token maps.

        Args:
          x: the clip.
          training: drops tokens, if nested_dropout.
          seed: int32 [2]; needed for that.
        Raises:
          ValueError: the seed is missing.
        """
        tokens, maps = self._tokenize(x)  # [B, M, S, C], [B, T, H, W, S]
        keep = None
        if training and self.nested_dropout:
            kept = nested_tokens.draw_kept(
                tf.shape(x)[0], self.num_tokens, seed=attention.required(seed)
            )
            tokens = nested_tokens.keep_first(tokens, kept)
            keep = nested_tokens.is_kept(kept, self.num_tokens, tokens.dtype)
        elif not training and self.used_tokens and self._is_ready():
            tokens = tokens[:, :, : self.used_tokens]
            maps = None if maps is None else maps[..., : self.used_tokens]
        _, m, s, c = tokens.shape
        y = self.transformer(tf.reshape(tokens, [-1, m * s, c]))  # [B, M*S, C]
        y = tf.reshape(y, [-1, m, s, c])  # [B, M, S, C]
        return self._restore(y, x, maps, keep), tokens, maps

    def _is_ready(self) -> bool:
        """False for the first call, which makes TokenFuser for all S tokens."""
        return self.restore != "fuser" or self.token_fuser.built

    def _tokenize(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """[B, T, H, W, C] -> tokens [B, M, S, C], maps [B, T, H, W, S] or None."""
        if self.tokenizer == "volume":
            return self.token_learner(x)
        _, t, h, w, c = x.shape
        # Version 1.1 knows no grid: it takes [B*T, H*W, C].
        frame_shape = [h * w, c] if self.tokenizer == "v1.1" else [h, w, c]
        tokens, maps = self.token_learner(tf.reshape(x, [-1, *frame_shape]))
        if maps is not None:
            maps = tf.reshape(maps, [-1, t, h, w, self.num_tokens])  # [B, T, H, W, S]
        return tf.reshape(tokens, [-1, t, self.num_tokens, c]), maps  # [B, T, S, C]

    def _restore(
        self,
        y: tf.Tensor,
        x: tf.Tensor,
        maps: tf.Tensor | None,
        keep: tf.Tensor | None,
    ) -> tf.Tensor:
        """Writes tokens y [B, M, S, C] onto the clip x [B, T, H, W, C]."""
        _, m, s, c = y.shape
        _, t, h, w, _ = x.shape
        cells = t // m * h * w  # of a window
        grid = tf.reshape(x, [-1, m, cells, c])  # [B, M, N, C]
        if self.restore == "fuser":
            grid = self.token_fuser(y, grid, keep)
        elif self.restore == "broadcast":
            grid += tf.reduce_mean(y, axis=2, keepdims=True)  # of [B, M, 1, C]
        else:
            if keep is not None:
                y *= keep[:, tf.newaxis, :, tf.newaxis]
            maps = tf.reshape(maps, [-1, cells, s])  # [B*M, N, S]
            y = alternatives.unpool(tf.reshape(y, [-1, s, c]), maps)  # [B*M, N, C]
            grid += tf.reshape(y, [-1, m, cells, c])
        return tf.reshape(grid, [-1, t, h, w, c])

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "tokenizer": self.tokenizer,
            "transformer": self.transformer_form,
            "num_heads": self.num_heads,
            "restore": self.restore,
            "mixing": self.mixing,
            "beta": self.beta,
            "use_norm": self.use_norm,
            "zero_init": self.zero_init,
            "use_projection": self.use_projection,
            "dense_grid": self.dense_grid,
            "window_frames": self.window_frames,
            "nested_dropout": self.nested_dropout,
            "used_tokens": self.used_tokens,
        }
