"""The X(2+1)D residual block and the TokenLearner module that replaces its conv1d.

Layers take clips [B, T, H, W, C]. Inside, time is folded into the batch, and the
temporal convolution is a 2-D one over [B, T, H*W, C] with a (K, 1) kernel: the same
sums as a 1-D convolution, on a path that every backend compiles well.
"""

import tensorflow as tf
import tf_keras

from tl_tf.layers import token_learner, vector_attention

BATCH_NORMS = ("local", "sync", "frozen")
TOKENIZERS = ("bottleneck", "v1.0", "v1.1")

# X3D (SlowFast's configs): epsilon 1e-5 and momentum 0.1, which Keras counts from the
# other end.
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9


def batch_norm(kind: str, *, name: str, zero_gamma: bool = False):
    """Builds a batch normalisation over the last axis.

    Args:
      kind: "local" takes its statistics from the replica's clips, "sync" from all
        replicas', "frozen" from the moving averages; nothing of it is then trained.
        "sync" in a compiled step (jit_compile) needs a TPU or a single replica.
      name: the layer's name.
      zero_gamma: starts the scale at zero.
    Raises:
      ValueError: kind is unknown.
    """
    if kind not in BATCH_NORMS:
        raise ValueError(
            f"{name}: batch_norm must be one of {BATCH_NORMS}, got {kind!r}."
        )
    return tf_keras.layers.BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        gamma_initializer="zeros" if zero_gamma else "ones",
        synchronized=kind == "sync",
        trainable=kind != "frozen",  # a frozen Keras norm uses its moving averages
        name=name,
    )


def conv(filters: int, kernel_size, *, name: str, strides: int = 1, groups: int = 1):
    """Builds a bias-free 2-D convolution: a batch normalisation follows each one."""
    return tf_keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",  # X3D: MSRA initialisation
        name=name,
    )


def fold_time(x: tf.Tensor) -> tf.Tensor:
    """Folds time into the batch: [B, T, H, W, C] -> [B*T, H, W, C]."""
    return tf.reshape(x, [-1, *x.shape[2:]])


def unfold_time(x: tf.Tensor, num_frames: int) -> tf.Tensor:
    """Undoes `fold_time`: [B*T, ...] -> [B, T, ...]."""
    return tf.reshape(x, [-1, num_frames, *x.shape[1:]])


class TemporalConv(tf_keras.layers.Layer):
    """A convolution over time alone, at every cell of the grid.

    Shapes: x [B, T, H, W, C] -> [B, T, H, W, C]
    Source: Section 6.1, the "1D conv. layer" of the pair that replaces a 3-D one.
    Args:
      kernel_size: frames, odd.
      use_depthwise: one filter per channel instead of a full C -> C convolution.
    """

    def __init__(self, kernel_size: int = 3, *, use_depthwise: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.use_depthwise = use_depthwise

    def build(self, input_shape) -> None:
        """Creates the convolution, as wide as the input."""
        channels = input_shape[-1]
        if self.use_depthwise:
            self.conv = tf_keras.layers.DepthwiseConv2D(
                (self.kernel_size, 1),
                padding="same",
                use_bias=False,
                depthwise_initializer="he_normal",
                name="conv",
            )
        else:
            self.conv = conv(channels, (self.kernel_size, 1), name="conv")
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolved clip."""
        _, t, h, w, c = x.shape
        x = tf.reshape(x, [-1, t, h * w, c])  # [B, T, H*W, C]
        return tf.reshape(self.conv(x), [-1, t, h, w, c])  # [B, T, H, W, C]

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "use_depthwise": self.use_depthwise,
        }


class TokenModule(tf_keras.layers.Layer):
    """TokenLearner, Vector Transformer over all S*T learned tokens, TokenFuser.

    Returns the clip, the learned tokens and the token maps.

    Shapes: x [B, T, H, W, C] -> [B, T, H, W, C], [B, T, S, C], [B, T, H, W, S]
    Source: Section 6.1, Figure 9 and Appendix A.
    Args:
      num_tokens: S per frame, at least 1.
      tokenizer: "bottleneck" (the paper's), "v1.0" or "v1.1".
      mixing: as in `TokenFuser`.
      beta: as in `TokenFuser`.
      use_norm: as in `TokenFuser`.
      zero_init: as in `TokenFuser`.
      use_projection: as in `BottleneckTokenLearner`; the other tokenizers have none.
    Raises:
      ValueError: tokenizer is unknown or has no projection.
    """

    def __init__(
        self,
        num_tokens: int = 8,
        tokenizer: str = "bottleneck",
        *,
        mixing: str = "joint",
        beta: str = "linear",
        use_norm: bool = False,
        zero_init: bool = False,
        use_projection: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if tokenizer not in TOKENIZERS:
            raise ValueError(
                f"{self.name}: tokenizer must be one of {TOKENIZERS}, got "
                f"{tokenizer!r}."
            )
        if use_projection and tokenizer != "bottleneck":
            raise ValueError(
                f"{self.name}: use_projection needs tokenizer='bottleneck', got "
                f"{tokenizer!r}."
            )
        self.num_tokens = num_tokens
        self.tokenizer = tokenizer
        self.use_projection = use_projection
        if tokenizer == "bottleneck":
            self.token_learner = token_learner.BottleneckTokenLearner(
                num_tokens, use_projection=use_projection, name="token_learner"
            )
        elif tokenizer == "v1.0":
            self.token_learner = token_learner.TokenLearner(
                num_tokens, name="token_learner"
            )
        else:
            self.token_learner = token_learner.TokenLearnerV11(
                num_tokens, name="token_learner"
            )
        self.transformer = vector_attention.VectorTransformer(name="transformer")
        self.token_fuser = token_learner.TokenFuser(
            mixing,
            beta,
            use_norm=use_norm,
            zero_init=zero_init,
            name="token_fuser",
        )

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the clip, the learned tokens and the token maps."""
        _, t, h, w, c = x.shape
        s = self.num_tokens
        # Version 1.1 knows no grid: it takes [B*T, H*W, C].
        frame_shape = [h * w, c] if self.tokenizer == "v1.1" else [h, w, c]
        tokens, maps = self.token_learner(tf.reshape(x, [-1, *frame_shape]))
        maps = tf.reshape(maps, [-1, t, h, w, s])  # [B, T, H, W, S]
        tokens = tf.reshape(tokens, [-1, t, s, c])  # [B, T, S, C]
        y = self.transformer(tf.reshape(tokens, [-1, t * s, c]))  # [B, T*S, C]
        y = tf.reshape(y, [-1, t, s, c])  # [B, T, S, C]
        x = self.token_fuser(y, tf.reshape(x, [-1, t, h * w, c]))  # [B, T, H*W, C]
        return tf.reshape(x, [-1, t, h, w, c]), tokens, maps

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_tokens": self.num_tokens,
            "tokenizer": self.tokenizer,
            "mixing": self.token_fuser.mixing,
            "beta": self.token_fuser.beta_form,
            "use_norm": self.token_fuser.use_norm,
            "zero_init": self.token_fuser.zero_init,
            "use_projection": self.use_projection,
        }


class Conv2Plus1DBlock(tf_keras.layers.Layer):
    """An inverted bottleneck whose 3-D convolution is a 2-D and a 1-D one.

    Returns the clip and its endpoints: "learned_tokens" [B, T, S, C] and "token_maps"
    [B, T, H', W', S] where a TokenModule replaces the conv1d, else none.

    Shapes: x [B, T, H, W, C] -> [B, T, H', W', D]
    Source: Section 6.1, Figure 9; X3D's block without squeeze-and-excite and swish. A
      replaced conv1d leaves its batch normalisation and ReLU behind.
    Args:
      filters: D, channels out.
      inner_filters: channels of the convolutions inside.
      stride: 1, or 2 to halve H and W.
      token_module: None keeps the conv1d; else the arguments of a TokenModule.
      use_conv2d: False leaves the conv2d out; the 1x1 before it then takes the stride.
      batch_norm: as in `batch_norm`.
    Raises:
      ValueError: a conv2d is left out without a token_module; see `batch_norm`.
    """

    def __init__(
        self,
        filters: int,
        inner_filters: int,
        *,
        stride: int = 1,
        token_module: dict | None = None,
        use_conv2d: bool = True,
        batch_norm: str = "local",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not use_conv2d and token_module is None:
            raise ValueError(f"{self.name}: use_conv2d=False needs a token_module.")
        self.filters = filters
        self.inner_filters = inner_filters
        self.stride = stride
        self.token_module_options = token_module
        self.use_conv2d = use_conv2d
        self.batch_norm = batch_norm
        self.has_token_module = token_module is not None

        self.expand = conv(
            inner_filters, 1, strides=1 if use_conv2d else stride, name="expand"
        )
        self.expand_norm = self._norm("expand_norm")
        if use_conv2d:
            self.conv2d = conv(inner_filters, 3, strides=stride, name="conv2d")
            self.conv2d_norm = self._norm("conv2d_norm")
        if self.has_token_module:
            self.token_module = TokenModule(**token_module, name="token_module")
        else:
            self.conv1d = TemporalConv(name="conv1d")
        self.temporal_norm = self._norm("temporal_norm")
        self.project = conv(filters, 1, name="project")
        # Zero, as X3D: every block starts as its shortcut.
        self.project_norm = self._norm("project_norm", zero_gamma=True)

    def build(self, input_shape) -> None:
        """Creates the shortcut's convolution where the shape changes."""
        self.has_shortcut_conv = self.stride != 1 or input_shape[-1] != self.filters
        if self.has_shortcut_conv:
            self.shortcut = conv(self.filters, 1, strides=self.stride, name="shortcut")
            self.shortcut_norm = self._norm("shortcut_norm")
        super().build(input_shape)

    def call(
        self, x: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the clip and its endpoints."""
        t, endpoints = x.shape[1], {}
        shortcut = x = fold_time(x)  # [B*T, H, W, C]
        if self.has_shortcut_conv:
            shortcut = self.shortcut_norm(self.shortcut(x), training=training)
        x = tf.nn.relu(self.expand_norm(self.expand(x), training=training))
        if self.use_conv2d:
            x = tf.nn.relu(self.conv2d_norm(self.conv2d(x), training=training))
        x = unfold_time(x, t)  # [B, T, H', W', inner]
        if self.has_token_module:
            x, tokens, maps = self.token_module(x)
            endpoints = {"learned_tokens": tokens, "token_maps": maps}
        else:
            x = self.conv1d(x)
        x = fold_time(x)  # [B*T, H', W', inner]
        x = tf.nn.relu(self.temporal_norm(x, training=training))
        x = self.project_norm(self.project(x), training=training)
        x = tf.nn.relu(shortcut + x)
        return unfold_time(x, t), endpoints  # [B, T, H', W', D]

    def _norm(self, name: str, *, zero_gamma: bool = False):
        return batch_norm(self.batch_norm, name=name, zero_gamma=zero_gamma)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        options = self.token_module_options
        return {
            **super().get_config(),
            "filters": self.filters,
            "inner_filters": self.inner_filters,
            "stride": self.stride,
            # Keras wraps a dict that is an attribute; JSON takes only a plain one.
            "token_module": None if options is None else dict(options),
            "use_conv2d": self.use_conv2d,
            "batch_norm": self.batch_norm,
        }
