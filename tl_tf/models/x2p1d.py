"""X(2+1)D, and X(2+1)D with other modules in its last stage (Section 6)."""

from collections.abc import Mapping, Sequence

import gin
import tensorflow as tf
import tf_keras

from tl_tf.layers import (
    bottleneck,
    conv2plus1d,
    nested_tokens,
    recompute,
    token_learner,
    tokenizers,
)

# X3D-M (Section 6.1: "identical to X3D-M"): channels of each stage and of its insides.
STAGE_FILTERS = (24, 48, 96, 192)
INNER_FILTERS = (54, 108, 216, 432)
STAGE_DEPTHS = (3, 5, 11, 7)
STAGE_STRIDES = (2, 2, 2, 2)
HEAD_FILTERS = 2048  # X3D keeps it at every width
STEM_KERNEL_FRAMES = 5

# Tables XII and XIII: the layers of a module, names of conv2plus1d.LAYERS in order.
MODULES = {
    "conv1d": ("conv1d",),
    "joint": ("joint",),
    "temporal": ("temporal",),
    "spatial": ("spatial",),
    "spatial_temporal": ("spatial", "temporal"),
    "mlp_mixer": ("token_module",),
    "token_learner": ("token_module",),
    "spatial_token_learner": ("spatial", "token_module"),
}
# Table XIII's cost fits a Mixer over the means of the frames.
MLP_MIXER = {
    "num_tokens": 1,
    "tokenizer": "grid",
    "transformer": "mlp_mixer",
    "restore": "broadcast",
}
STEM_KERNELS = ("full", "depthwise")


class X2Plus1D(tf_keras.Model):
    """X3D-M with (2+1)-D convolutions: stem, four stages, head, classifier.

    `call` returns the logits [B, K] and a dict of endpoints: "stem", "stage_i",
    "stage_i/block_j", "head", "pooled", and for a block with a TokenModule
    "stage_i/block_j/learned_tokens" [B, M, S, C] and, if its tokenizer has them,
    "stage_i/block_j/token_maps" [B, T, H, W, S]. No weight depends on H or W.

    Shapes: frames [B, T, H, W, 3] -> [B, K]
    Source: Section 6.1 and Figure 9.
    Differs: everything Section 6.1 leaves to X3D is as there, but what the printed 532
      GFLOPs decide: a full temporal convolution in the stem, and the average after the
      last projection instead of before it (else 519.5).
    Args: as `build_x2p1d`; module_layers are, for each block of the last stage with a
      module, the `layers` of its `Conv2Plus1DBlock`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        num_frames: int,
        module_layers: Mapping[int, dict],
        use_conv2d: bool,
        width: float,
        stage_depths: Sequence[int],
        stage_strides: Sequence[int],
        stem_kernel: str,
        use_early_pooling: bool,
        batch_norm: str,
        dropout_rate: float,
        recompute: bool,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_frames = num_frames
        self.recompute = recompute
        self.use_early_pooling = use_early_pooling
        self.dropout_rate = dropout_rate

        def scaled(channels):
            return max(1, round(width * channels))

        self.stem_conv = conv2plus1d.conv(
            scaled(STAGE_FILTERS[0]), 3, strides=2, name="stem/conv2d"
        )
        self.stem_temporal = conv2plus1d.TemporalConv(
            STEM_KERNEL_FRAMES,
            use_depthwise=stem_kernel == "depthwise",
            name="stem/conv1d",
        )
        self.stem_norm = conv2plus1d.batch_norm(batch_norm, name="stem/norm")

        self.stages = {}
        for i, depth in enumerate(stage_depths):
            stage, is_last = f"stage_{i + 1}", i == len(stage_depths) - 1
            self.stages[stage] = []
            for j in range(depth):
                has_module = is_last and j in module_layers
                block = conv2plus1d.Conv2Plus1DBlock(
                    scaled(STAGE_FILTERS[i]),
                    scaled(INNER_FILTERS[i]),
                    stride=stage_strides[i] if j == 0 else 1,
                    layers=module_layers[j] if has_module else None,
                    use_conv2d=use_conv2d or not has_module,
                    batch_norm=batch_norm,
                    name=f"{stage}/block_{j}",
                )
                self.stages[stage].append(block)

        self.head_conv = conv2plus1d.conv(
            scaled(INNER_FILTERS[-1]), 1, name="head/conv"
        )
        self.head_norm = conv2plus1d.batch_norm(batch_norm, name="head/norm")
        self.head_projection = tf_keras.layers.Dense(
            HEAD_FILTERS, use_bias=False, activation="relu", name="head/projection"
        )
        self.classifier = tf_keras.layers.Dense(
            num_classes,
            kernel_initializer=tf_keras.initializers.RandomNormal(stddev=0.01),  # X3D
            dtype="float32",
            name="head/classifier",
        )

    def call(
        self, frames: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns float32 logits and the endpoints.

        Args:
          frames: -1..1; T must be num_frames, H and W at least 32.
          training: uses batch statistics and dropout.
          seed: int32 [2], of every draw; needed in training unless dropout_rate is 0
            and there is no nested_dropout.
        Raises:
          ValueError: frames has another T, or the seed is missing.
        """
        tf.debugging.assert_shapes([(frames, ("B", "T", "H", "W", 3))], message="x2p1d")
        if frames.shape[1] != self.num_frames:
            raise ValueError(
                f"x2p1d: built for num_frames={self.num_frames}, got frames of shape "
                f"{frames.shape}. Set build_x2p1d.num_frames to the data set's."
            )
        endpoints = {}

        x = self.stem_conv(conv2plus1d.fold_time(frames))  # [B*T, H/2, W/2, C]
        x = conv2plus1d.unfold_time(x, self.num_frames)  # [B, T, H/2, W/2, C]
        x = conv2plus1d.fold_time(self.stem_temporal(x))  # [B*T, H/2, W/2, C]
        x = tf.nn.relu(self.stem_norm(x, training=training))
        x = conv2plus1d.unfold_time(x, self.num_frames)  # [B, T, H/2, W/2, C]
        endpoints["stem"] = x

        for stage, blocks in self.stages.items():
            for j, block in enumerate(blocks):
                # Of the blocks with a module, which are of one stage.
                block_seed = None if seed is None else tf.random.fold_in(seed, j)
                if training and self.recompute:
                    x, inside = recompute.call(block, x, seed=block_seed)
                else:
                    x, inside = block(x, training=training, seed=block_seed)
                endpoints[f"{stage}/block_{j}"] = x
                for name, tensor in inside.items():
                    endpoints[f"{stage}/block_{j}/{name}"] = tensor
            endpoints[stage] = x

        x = self.head_conv(conv2plus1d.fold_time(x))  # [B*T, H/32, W/32, C]
        x = tf.nn.relu(self.head_norm(x, training=training))
        x = conv2plus1d.unfold_time(x, self.num_frames)  # [B, T, H/32, W/32, C]
        if self.use_early_pooling:
            x = _pool(x)  # [B, 1, 1, 1, C]
        x = self.head_projection(x)
        endpoints["head"] = x
        x = tf.reshape(_pool(x), [-1, HEAD_FILTERS])  # [B, C]
        endpoints["pooled"] = x
        return self.classifier(self._dropout(x, training, seed)), endpoints

    def _dropout(self, x: tf.Tensor, training: bool, seed) -> tf.Tensor:
        if not training or self.dropout_rate == 0:
            return x
        if seed is None:
            raise ValueError("x2p1d: training with dropout needs a seed, int32 [2].")
        return tf.nn.experimental.stateless_dropout(
            x, rate=self.dropout_rate, seed=seed
        )


def _pool(x: tf.Tensor) -> tf.Tensor:
    """Averages [B, T, H, W, C] over T, H and W in float32.  -> [B, 1, 1, 1, C]."""
    return tf.reduce_mean(tf.cast(x, tf.float32), axis=[1, 2, 3], keepdims=True)


@gin.configurable
def build_x2p1d(
    num_classes: int = gin.REQUIRED,
    *,
    num_frames: int = 64,
    module: str | Sequence[str] = "conv1d",
    # Table XI's cost fits three of the seven blocks. Bottleneck Transformers, whose
    # style Section 6.1 follows, replace the final three: so do we.
    module_blocks: Sequence[int] = (4, 5, 6),
    use_conv2d: bool = True,
    num_tokens: int = 8,
    tokenizer: str = "bottleneck",
    transformer: str | None = None,
    num_heads: int = 8,
    restore: str = "fuser",
    mixing: str = "joint",
    beta: str = "linear",
    use_norm: bool = False,
    zero_init: bool = False,
    cost_matching: bool = False,
    dense_grid: Sequence[int] = (7, 7),
    window_frames: int = 1,
    nested_dropout: bool = False,
    used_tokens: int | None = None,
    width: float = 1.0,
    stage_depths: Sequence[int] = STAGE_DEPTHS,
    stage_strides: Sequence[int] = STAGE_STRIDES,
    stem_kernel: str = "full",
    use_early_pooling: bool = False,
    batch_norm: str = "local",
    dropout_rate: float = 0.5,
    recompute: bool = False,
) -> X2Plus1D:
    """Builds X(2+1)D-M, a version of Tables XI to XIV, or a smaller one of either.

    Args:
      num_classes: K, at least 1.
      num_frames: T of every clip, at least 1; with mixing "joint" or "per_token" the
        weights depend on it.
      module: what follows the conv2d in module_blocks: one of MODULES for all of them,
        or one for each.
      module_blocks: blocks of the last stage, from 0, that get the module.
      use_conv2d: False leaves the conv2d out of those blocks.
      num_tokens: S per frame, at least 1.
      tokenizer: of the TokenLearner modules: "bottleneck" (the paper's), "v1.0",
        "v1.1", what Section 6.3.3 compares with: "grid", "dense" or "pooled", or
        "volume" (beyond the paper: S tokens of window_frames frames).
      transformer: "vector", "mhsa" or, among tokens, "prior" or "mlp_mixer". None is
        the paper's: "vector" among tokens, "mhsa" in the other modules.
      num_heads: of the MHSA, a divisor of the channels inside, 432 * width.
      restore: from tokens to the grid: "fuser" (the paper's), "broadcast" (Table XIV)
        or "unpool" (Section 3.5.3).
      mixing: TokenFuser's "joint" (the text), "per_frame" or "per_token".
      beta: TokenFuser's "linear" (the text), "mlp" or "conv".
      use_norm: TokenFuser's two LayerNorms; the text has none.
      zero_init: starts TokenFuser's matrix at zero.
      cost_matching: the variant that fits the printed cost of a module, 3.4 GFLOPs and
        0.81M parameters: a 1x1 projection before the pooling, and mixing "per_token".
      dense_grid: rows and columns of the grid that tokenizer "dense" is made for.
      window_frames: frames of a window with tokenizer "volume", a divisor of
        num_frames; 1 with the others.
      nested_dropout: in training each clip keeps the first so many of its tokens, so
        that used_tokens may be lowered later.
      used_tokens: tokens in inference, a divisor of num_tokens; None for all.
      width: factor on every channel count but the last projection's, above 0.
      stage_depths: blocks of each of the four stages, at least 1 each.
      stage_strides: by which each stage divides H and W, 1 or 2 each: small pictures
        want a grid left for the learned tokens to choose from.
      stem_kernel: temporal convolution of the stem, "full" or "depthwise" (X3D).
      use_early_pooling: averages before the last projection (X3D in training), for 7
        GFLOPs less.
      batch_norm: "local", "sync" (statistics over all replicas) or "frozen" (for
        fine-tuning: from scratch, the blocks would stay at their shortcuts).
      dropout_rate: before the classifier, in [0, 1). X3D's 0.5; the paper names none.
      recompute: in training each block keeps its input alone for the backward pass,
        which computes the rest anew: less memory, a third more work.
    Raises:
      ValueError: an argument is out of range; names the binding to change.
    """
    _check(num_classes >= 1, "num_classes", ">= 1", num_classes)
    _check(num_frames >= 1, "num_frames", ">= 1", num_frames)
    _check(num_tokens >= 1, "num_tokens", ">= 1", num_tokens)
    _check(num_heads >= 1, "num_heads", ">= 1", num_heads)
    _check(width > 0, "width", "> 0", width)
    _check(0 <= dropout_rate < 1, "dropout_rate", "in [0, 1)", dropout_rate)
    _check(
        len(stage_depths) == len(STAGE_DEPTHS) and min(stage_depths) >= 1,
        "stage_depths",
        f"{len(STAGE_DEPTHS)} depths >= 1",
        stage_depths,
    )
    _check(
        len(stage_strides) == len(STAGE_DEPTHS) and set(stage_strides) <= {1, 2},
        "stage_strides",
        f"{len(STAGE_DEPTHS)} strides of 1 or 2",
        stage_strides,
    )
    if isinstance(module, str):
        modules = (module,) * len(module_blocks)
    else:
        modules = tuple(module)
        _check(
            len(modules) == len(module_blocks),
            "module",
            f"one, or one for each of the {len(module_blocks)} module_blocks",
            modules,
        )
    for name, values, choices in (
        ("module", modules, tuple(MODULES)),
        ("tokenizer", [tokenizer], tuple(tokenizers.TOKENIZERS)),
        ("transformer", [transformer], (None, *bottleneck.TRANSFORMERS)),
        ("restore", [restore], bottleneck.RESTORES),
        ("mixing", [mixing], token_learner.MIXINGS),
        ("beta", [beta], token_learner.BETAS),
        ("stem_kernel", [stem_kernel], STEM_KERNELS),
        ("batch_norm", [batch_norm], conv2plus1d.BATCH_NORMS),
    ):
        for value in values:
            _check(value in choices, name, f"one of {choices}", value)
    _check(
        use_conv2d or "conv1d" not in modules,
        "use_conv2d",
        "True with module='conv1d'",
        use_conv2d,
    )
    _check(
        not cost_matching or any(name.endswith("token_learner") for name in modules),
        "cost_matching",
        "False with a module that has no TokenLearner",
        cost_matching,
    )
    _check(
        not cost_matching or (tokenizer == "bottleneck" and mixing == "joint"),
        "cost_matching",
        "False with another tokenizer or mixing than the default",
        cost_matching,
    )
    _check(
        window_frames == 1 or (tokenizer == "volume" and window_frames >= 1),
        "window_frames",
        "1, but with tokenizer='volume'",
        window_frames,
    )
    _check(
        num_frames % window_frames == 0,
        "window_frames",
        f"a divisor of num_frames={num_frames}",
        window_frames,
    )
    _check(
        used_tokens is None or used_tokens in nested_tokens.levels(num_tokens),
        "used_tokens",
        f"None or one of {nested_tokens.levels(num_tokens)}",
        used_tokens,
    )
    _check(
        transformer not in bottleneck.BY_TOKEN
        or not (nested_dropout or used_tokens is not None),
        "transformer",
        "one that treats all tokens alike, with nested_dropout or used_tokens",
        transformer,
    )
    depth = stage_depths[-1]
    _check(
        module == "conv1d"
        or (len(module_blocks) > 0 and all(0 <= j < depth for j in module_blocks)),
        "module_blocks",
        f"in 0..{depth - 1} (depth of the last stage {depth}), at least one",
        module_blocks,
    )
    token_module = {
        "num_tokens": num_tokens,
        "tokenizer": tokenizer,
        "transformer": transformer or "vector",
        "num_heads": num_heads,
        "restore": restore,
        "mixing": "per_token" if cost_matching else mixing,
        "beta": beta,
        "use_norm": use_norm,
        "zero_init": zero_init,
        "use_projection": cost_matching,
        "dense_grid": tuple(dense_grid),
        "window_frames": window_frames,
        "nested_dropout": nested_dropout,
        "used_tokens": used_tokens,
    }
    module_layers = {
        j: _layers(
            name, token_module, transformer=transformer or "mhsa", num_heads=num_heads
        )
        for j, name in zip(module_blocks, modules, strict=True)
        if name != "conv1d"
    }
    model = X2Plus1D(
        num_classes,
        num_frames=num_frames,
        module_layers=module_layers,
        use_conv2d=use_conv2d,
        width=width,
        stage_depths=stage_depths,
        stage_strides=stage_strides,
        stem_kernel=stem_kernel,
        use_early_pooling=use_early_pooling,
        batch_norm=batch_norm,
        dropout_rate=dropout_rate,
        recompute=recompute,
        name="x2p1d",
    )
    model.build([None, num_frames, 32, 32, 3])  # any H and W make the same variables
    return model


def _layers(module: str, token_module: dict, **attention) -> dict[str, dict]:
    """The layers of a module, with their arguments."""
    if module == "mlp_mixer":
        token_module = MLP_MIXER
    if "token_module" in MODULES[module]:  # `transformer` is meant for its tokens
        attention |= {"transformer": "mhsa"}
    return {
        name: token_module if name == "token_module" else attention
        for name in MODULES[module]
    }


def _check(is_valid: bool, argument: str, wanted: str, got) -> None:
    if not is_valid:
        raise ValueError(
            f"x2p1d: {argument} must be {wanted}, got {got!r}. Set "
            f"build_x2p1d.{argument} in the model's gin file."
        )
