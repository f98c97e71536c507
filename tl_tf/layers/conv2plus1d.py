"""The X(2+1)D residual block, whose conv1d and conv2d other layers may replace.

Layers take clips [B, T, H, W, C]. Inside, time is folded into the batch, and the
temporal convolution is a 2-D one over [B, T, H*W, C] with a (K, 1) kernel: the same
sums as a 1-D convolution, on a path that every backend compiles well.
"""

import functools

import tensorflow as tf
import tf_keras

from tl_tf.layers import bottleneck

BATCH_NORMS = ("local", "sync", "frozen")

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


# What may follow the conv2d of a block; a name is an attribute, so a checkpoint key.
LAYERS = {
    "conv1d": TemporalConv,
    "joint": functools.partial(bottleneck.GridAttention, "joint"),
    "spatial": functools.partial(bottleneck.GridAttention, "spatial"),
    "temporal": functools.partial(bottleneck.GridAttention, "temporal"),
    "token_module": bottleneck.TokenModule,
}


class Conv2Plus1DBlock(tf_keras.layers.Layer):
    """An inverted bottleneck whose 3-D convolution is a 2-D and a 1-D one.

    Returns the clip and its endpoints: "learned_tokens" [B, T, S, C] and "token_maps"
    [B, T, H', W', S] where a TokenModule has them, else none.

    Shapes: x [B, T, H, W, C] -> [B, T, H', W', D]
    Source: Section 6.1, Figure 9; X3D's block without squeeze-and-excite and swish.
    Differs: the paper does not say what stands around a replaced convolution: its batch
      normalisation and ReLU stay, and follow every layer of LAYERS.
    Args:
      filters: D, channels out.
      inner_filters: channels of the layers inside.
      stride: 1, or 2 to halve H and W.
      layers: what follows the conv2d, in order: names of LAYERS, each with the layer's
        arguments. None is the conv1d.
      use_conv2d: False leaves the conv2d out; the 1x1 before it then takes the stride.
      batch_norm: as in `batch_norm`.
    Raises:
      ValueError: a layer is unknown, or a conv1d is left alone; see `batch_norm`.
    """

    def __init__(
        self,
        filters: int,
        inner_filters: int,
        *,
        stride: int = 1,
        layers: dict[str, dict] | None = None,
        use_conv2d: bool = True,
        batch_norm: str = "local",
        **kwargs,
    ):
        super().__init__(**kwargs)
        layers = {"conv1d": {}} if layers is None else layers
        unknown = set(layers) - set(LAYERS)
        if unknown:
            raise ValueError(
                f"{self.name}: layers must be of {tuple(LAYERS)}, got "
                f"{sorted(unknown)}."
            )
        if not use_conv2d and "conv1d" in layers:
            raise ValueError(f"{self.name}: use_conv2d=False, so no conv1d in layers.")
        self.filters = filters
        self.inner_filters = inner_filters
        self.stride = stride
        self.layer_options = layers
        self.use_conv2d = use_conv2d
        self.batch_norm = batch_norm

        self.expand = conv(
            inner_filters, 1, strides=1 if use_conv2d else stride, name="expand"
        )
        self.expand_norm = self._norm("expand_norm")
        if use_conv2d:
            self.conv2d = conv(inner_filters, 3, strides=stride, name="conv2d")
            self.conv2d_norm = self._norm("conv2d_norm")
        for name, options in layers.items():
            setattr(self, name, LAYERS[name](**options, name=name))
            setattr(self, _norm_of(name), self._norm(_norm_of(name)))
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
        self, x: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the clip and its endpoints; seed is the TokenModule's."""
        t, endpoints = x.shape[1], {}
        shortcut = x = fold_time(x)  # [B*T, H, W, C]
        if self.has_shortcut_conv:
            shortcut = self.shortcut_norm(self.shortcut(x), training=training)
        x = tf.nn.relu(self.expand_norm(self.expand(x), training=training))
        if self.use_conv2d:
            x = tf.nn.relu(self.conv2d_norm(self.conv2d(x), training=training))
        for name in self.layer_options:
            x = unfold_time(x, t)  # [B, T, H', W', inner]
            if name != "token_module":
                x = getattr(self, name)(x)
            else:
                x, tokens, maps = self.token_module(x, training=training, seed=seed)
                endpoints = {"learned_tokens": tokens}
                endpoints |= {} if maps is None else {"token_maps": maps}
            x = getattr(self, _norm_of(name))(fold_time(x), training=training)
            x = tf.nn.relu(x)  # [B*T, H', W', inner]
        x = self.project_norm(self.project(x), training=training)
        x = tf.nn.relu(shortcut + x)
        return unfold_time(x, t), endpoints  # [B, T, H', W', D]

    def _norm(self, name: str, *, zero_gamma: bool = False):
        return batch_norm(self.batch_norm, name=name, zero_gamma=zero_gamma)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "inner_filters": self.inner_filters,
            "stride": self.stride,
            # Keras wraps a dict that is an attribute; JSON takes only a plain one.
            "layers": {name: dict(kw) for name, kw in self.layer_options.items()},
            "use_conv2d": self.use_conv2d,
            "batch_norm": self.batch_norm,
        }


def _norm_of(layer: str) -> str:
    """The attribute, so the checkpoint key, of the norm behind one of LAYERS."""
    return "spatial_norm" if layer == "spatial" else "temporal_norm"
