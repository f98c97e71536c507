"""What ViT and ViViT share: their options, blocks on learned tokens, and the head."""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras

from tl_tf.layers import (
    alternatives,
    attention,
    embedding,
    nested_tokens,
    recompute,
    token_learner,
)

# hidden_size, depth, num_heads, mlp_size: ViT, arXiv 2010.11929, Table 1; S is DeiT's.
VARIANTS = {
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}
TOKENIZERS = ("v1.0", "v1.1")
RESTORES = ("none", "fuser", "unpool", "reproject")
POOLS = {
    "gap": tf.reduce_mean,
    "gmp": tf.reduce_max,
    "gsp": tf.reduce_sum,
}
HEADS = (*POOLS, "token")


@dataclasses.dataclass
class Options:
    """The arguments that the builders share, checked; build_vit's docstring is theirs.

    Sizes that are None become those of the variant, and depth includes the extra
    blocks.

    Attributes:
      model: of which build_<model> is the builder; for messages.

    Raises:
      ValueError: one is out of range; names the binding to change.
    """

    model: str
    num_classes: int
    variant: str
    hidden_size: int | None
    depth: int | None
    num_heads: int | None
    mlp_size: int | None
    extra_blocks: int
    insert_before_block: int | None
    num_tokens: int
    tokenizer: str
    pooling: str
    restore: str
    fuser_mixing: str
    fuser_beta: str
    head: str
    representation_size: int | None
    head_bias: float
    dropout_rate: float
    attention_dropout_rate: float
    drop_path_rate: float
    nested_dropout: bool
    used_tokens: int | None
    recompute: bool
    window_slices: int = 1

    def __post_init__(self):
        self._check_choices(
            variant=VARIANTS,
            tokenizer=TOKENIZERS,
            pooling=token_learner.POOLINGS,
            restore=RESTORES,
            fuser_mixing=("per_frame", "joint"),
            fuser_beta=token_learner.BETAS,
            head=HEADS,
        )
        sizes = ("hidden_size", "depth", "num_heads", "mlp_size")
        for size, default in zip(sizes, VARIANTS[self.variant], strict=True):
            if getattr(self, size) is None:
                setattr(self, size, default)
        for name in ("num_classes", "depth", "num_heads", "mlp_size", "num_tokens"):
            self.check_at_least_1(name, getattr(self, name))
        if self.representation_size is not None:
            self.check_at_least_1("representation_size", self.representation_size)
        self.check(self.extra_blocks >= 0, "extra_blocks", ">= 0", self.extra_blocks)
        self.check(
            self.hidden_size >= 1 and self.hidden_size % self.num_heads == 0,
            "hidden_size",
            f"a multiple of num_heads={self.num_heads}",
            self.hidden_size,
        )
        for name in ("dropout_rate", "attention_dropout_rate", "drop_path_rate"):
            rate = getattr(self, name)
            self.check(0 <= rate < 1, name, "in [0, 1)", rate)
        self.depth += self.extra_blocks
        self._check_place()
        self._check_tokens()

    def check(self, is_valid: bool, argument: str, wanted: str, got) -> None:
        """Raises a ValueError that names the binding, unless is_valid."""
        if not is_valid:
            raise ValueError(
                f"{self.model}: {argument} must be {wanted}, got {got!r}. Set"
                f" build_{self.model}.{argument} in the model's gin file."
            )

    def check_at_least_1(self, argument: str, value: int) -> None:
        """Raises a ValueError for a size below 1."""
        self.check(value >= 1, argument, ">= 1", value)

    def grid_of(self, image_px, patch_px) -> tuple[tuple[int, int], ...]:
        """Height and width of images, of patches, and of the grid, all checked."""
        image_size, patch_size = _pair(image_px), _pair(patch_px)
        self.check_at_least_1("patch_px", min(patch_size))
        grid = tuple(i // p for i, p in zip(image_size, patch_size, strict=True))
        self.check(min(grid) >= 1, "patch_px", f"at most image_px={image_px}", patch_px)
        return image_size, patch_size, grid

    def learning_blocks(self) -> range:
        """The blocks before which TokenLearner stands."""
        first = self.insert_before_block
        if first is None:
            return range(0)
        return range(first, first + 1 if self.restore == "none" else self.depth)

    def _check_choices(self, **choices: Sequence[str]) -> None:
        for name, known in choices.items():
            value = getattr(self, name)
            self.check(value in known, name, f"one of {tuple(known)}", value)

    def _check_place(self) -> None:
        place, depth = self.insert_before_block, self.depth
        self.check(
            place is None or 0 <= place < depth,
            "insert_before_block",
            f"None or in 0..{depth - 1} (depth {depth} with the extra blocks)",
            place,
        )
        self.check(
            place is not None or self.restore == "none",
            "restore",
            "'none' without insert_before_block",
            self.restore,
        )

    def _check_tokens(self) -> None:
        levels = nested_tokens.levels(self.num_tokens)
        self.check(
            self.used_tokens is None or self.used_tokens in levels,
            "used_tokens",
            f"None or one of {levels}",
            self.used_tokens,
        )
        # Tokens that stand in for others count as one in means, not beside a class
        # token or in TokenFuser.
        is_nested = self.nested_dropout or self.used_tokens is not None
        self.check(
            not is_nested or (self.restore == "none" and self.head in ("gap", "gmp")),
            "nested_dropout",
            "False, and used_tokens None, but with restore 'none' and head 'gap' or"
            " 'gmp'",
            self.nested_dropout,
        )
        self.check(
            self.window_slices == 1
            or (self.window_slices > 1 and self.tokenizer == "v1.1"),
            "window_slices",
            "1, or above with tokenizer v1.1",
            self.window_slices,
        )


class Encoder(tf_keras.Model):
    """A Transformer whose blocks may run on learned tokens; ViT and ViViT add the rest.

    A model makes the layers of its embedding, then calls `add_encoder`: an optimizer's
    checkpoint numbers the variables in the order of the layers.
    """

    def add_encoder(
        self,
        options: Options,
        *,
        grid: Sequence[int],
        num_slices: int = 1,
        slices_attended: int = 1,
        num_kept: int = 0,
        pools: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        """Makes all layers from the class token to the classifier.

        Args:
          options: of the builder.
          grid: H and W of a slice.
          num_slices: T of a clip.
          slices_attended: of them, in one sequence of tokens: all, or 1; a multiple of
            window_slices, those that TokenLearner pools together.
          num_kept: class tokens that TokenLearner neither pools nor drops.
          pools: the grid that is left by averaging before a block.
        """
        pools = pools or {}
        learning = options.learning_blocks()
        starts = sorted(pools) or list(learning[:1])
        self.grid = tuple(grid)
        self.num_slices = num_slices
        self.slices_attended = slices_attended
        self.windows_attended = slices_attended // options.window_slices
        self.nested_dropout = options.nested_dropout
        self.used_tokens = options.used_tokens
        self.recompute = options.recompute
        self.num_kept = num_kept
        self.head = options.head
        self.dropout_rate = options.dropout_rate
        self.class_token = None
        if options.head == "token":
            self.class_token = self.add_class_token("class_token", options.hidden_size)
        self.position = embedding.PositionEmbed(name="position")
        self.blocks = [
            attention.EncoderBlock(
                options.num_heads,
                options.mlp_size,
                dropout_rate=options.dropout_rate,
                attention_dropout_rate=options.attention_dropout_rate,
                drop_path_rate=options.drop_path_rate * i / max(options.depth - 1, 1),
                name=_name("block", i, starts),
            )
            for i in range(options.depth)
        ]
        self.reducers = {
            str(i): alternatives.GridPool(left, name=_name("grid_pool", i, starts))
            for i, left in pools.items()
        }
        for i in learning:
            self.reducers[str(i)] = _reducer(options, i, starts)
        self.restorers = {
            str(i): _restorer(options, i, starts)
            for i in learning
            if options.restore != "none"
        }
        self.norm = attention.layer_norm("norm")

    def add_head(self, options: Options) -> None:
        """Makes the layers behind the pooled tokens."""
        self.pre_logits = None
        if options.representation_size is not None:
            self.pre_logits = tf_keras.layers.Dense(
                options.representation_size,
                activation="tanh",
                kernel_initializer="lecun_normal",
                name="pre_logits",
            )
        self.classifier = tf_keras.layers.Dense(
            options.num_classes,
            kernel_initializer="zeros",
            bias_initializer=tf_keras.initializers.Constant(options.head_bias),
            dtype="float32",
            name="classifier",
        )

    def add_class_token(self, name: str, hidden_size: int) -> tf.Variable:
        """Makes a token that starts at zero."""
        return self.add_weight(
            name=name, shape=(1, 1, hidden_size), initializer="zeros"
        )

    def encode(self, x: tf.Tensor, endpoints: dict, *, training: bool, seed):
        """Patch tokens [B, T * N, C] to the normalised tokens [B, L, C] of the end."""
        x = prepend(self.class_token, x)
        x = self.position(x)
        x = attention.dropout(
            x, self.dropout_rate, training=training, seed=seed, draw=len(self.blocks)
        )
        endpoints["position"] = x
        for i, block in enumerate(self.blocks):
            block_seed = None if seed is None else tf.random.fold_in(seed, i)
            if str(i) in self.reducers:
                kept, grid = self._split(x)  # [B * T, N, C]
                y, maps = self._reduce(i, grid, endpoints, training)  # [B * T, S, C]
                x = self._join(kept, y)  # [B, T * S, C]
                if training and self.nested_dropout:
                    x = self._drop_tokens(x, seed)  # [B, T * S, C]
            if training and self.recompute:
                x = recompute.call(block, x, seed=block_seed)
            else:
                x = block(x, training=training, seed=block_seed)
            endpoints[f"block_{i}"] = x
            if str(i) in self.restorers:
                kept, y = self._split(x)  # [B * T, S, C]
                grid = self._restore(i, y, grid, maps, endpoints)  # [B * T, N, C]
                x = self._join(kept, grid)  # [B, T * N, C]
        x = self.norm(x)
        endpoints["norm"] = x
        return x

    def pool(self, x: tf.Tensor) -> tf.Tensor:
        """[B, L, C] -> [B, C]."""
        return x[:, 0] if self.head == "token" else POOLS[self.head](x, axis=1)

    def classify(self, x: tf.Tensor, endpoints: dict) -> tf.Tensor:
        """[B, C] -> logits [B, K]."""
        if self.pre_logits is not None:
            x = self.pre_logits(x)
        endpoints["pre_logits"] = x
        return self.classifier(x)

    def _drop_tokens(self, x: tf.Tensor, seed: tf.Tensor | None) -> tf.Tensor:
        """Learned tokens [B, T * S, C], the first ones of each slice repeated."""
        batch_size, (_, length, channels) = tf.shape(x)[0], x.shape
        num_tokens = length // self.windows_attended
        seed = tf.random.fold_in(attention.required(seed), len(self.blocks) + 2)
        kept = nested_tokens.draw_kept(batch_size, num_tokens, seed=seed)
        by_window = [-1, self.windows_attended, num_tokens, channels]
        x = nested_tokens.keep_first(tf.reshape(x, by_window), kept)  # [B, T, S, C]
        return tf.reshape(x, [-1, length, channels])

    def _split(self, x: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor]:
        """The class token, and the slices of the rest [B * T, L, C]."""
        kept = None
        if self.num_kept:
            kept, x = x[:, : self.num_kept], x[:, self.num_kept :]
        _, length, channels = x.shape
        return kept, tf.reshape(x, [-1, length // self.windows_attended, channels])

    def _join(self, kept: tf.Tensor | None, x: tf.Tensor) -> tf.Tensor:
        x = self._sequence(x)
        return x if kept is None else tf.concat([kept, x], axis=1)

    def _sequence(self, x: tf.Tensor) -> tf.Tensor:
        """[B * T, L, C] -> [B, T * L, C]."""
        _, length, channels = x.shape
        return tf.reshape(x, [-1, self.windows_attended * length, channels])

    def _reduce(self, i: int, x: tf.Tensor, endpoints: dict, training: bool):
        """Fewer tokens before block i.  -> [B * T, S, C], and maps [B * T, N, S]."""
        layer = self.reducers[str(i)]
        grid = self.grid
        if isinstance(layer, alternatives.GridPool):
            before = [int(j) for j in self.reducers if int(j) < i]
            if before:
                grid = self.reducers[str(max(before))].grid
            x = layer(tf.reshape(x, [-1, *grid, x.shape[-1]]))  # [B * T, S, C]
            endpoints[f"block_{i}/pooled"] = self._sequence(x)
            return x, None
        if isinstance(layer, token_learner.TokenLearner):
            x, maps = layer(tf.reshape(x, [-1, *grid, x.shape[-1]]))
            maps = tf.reshape(maps, [-1, grid[0] * grid[1], maps.shape[-1]])
        else:
            x, maps = layer(x)  # [B * T, S, C], [B * T, N, S]
        if not training:  # the tokenizer still makes all of them
            x, maps = x[:, : self.used_tokens], maps[..., : self.used_tokens]
        endpoints[f"block_{i}/learned_tokens"] = self._sequence(x)
        cells = self.slices_attended // self.windows_attended * grid[0] * grid[1]
        of_patches = maps[:, -cells:]  # without the class token's
        endpoints[f"block_{i}/token_maps"] = tf.reshape(
            of_patches, [-1, self.num_slices, *grid, maps.shape[-1]]
        )  # [B, T, H, W, S]
        return x, maps

    def _restore(self, i: int, y: tf.Tensor, x: tf.Tensor, maps, endpoints: dict):
        """The grid x with the tokens y written onto it.  -> [B * T, N, C]"""
        layer = self.restorers[str(i)]
        if isinstance(layer, alternatives.Reprojection):
            return layer(y, x)
        if layer is None:
            fused = alternatives.unpool(y, maps)
        else:
            by_time = [-1, self.windows_attended]
            fused = layer(
                tf.reshape(y, [*by_time, *y.shape[1:]]),  # [B, T, S, C]
                tf.reshape(x, [*by_time, *x.shape[1:]]),  # [B, T, N, C]
            )
            fused = tf.reshape(fused, [-1, *x.shape[1:]])  # [B * T, N, C]
        endpoints[f"block_{i}/fused"] = self._sequence(fused)
        return x + fused


def prepend(token: tf.Variable | None, x: tf.Tensor) -> tf.Tensor:
    """A class token, if there is one, before the tokens.  -> [B, 1 + L, C]"""
    if token is None:
        return x
    token = tf.tile(tf.cast(token, x.dtype), [tf.shape(x)[0], 1, 1])  # [B, 1, C]
    return tf.concat([token, x], axis=1)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _name(what: str, i: int, starts: Sequence[int]) -> str:
    # A stage ends where fewer tokens begin; the cost table adds it up.
    return f"stage_{1 + sum(i >= start for start in starts)}/{what}_{i}"


def _reducer(options: Options, i: int, starts) -> tf_keras.layers.Layer:
    name = _name("token_learner", i, starts)
    if options.tokenizer == "v1.0":
        return token_learner.TokenLearner(
            options.num_tokens, options.pooling, name=name
        )
    return token_learner.TokenLearnerV11(options.num_tokens, name=name)


def _restorer(options: Options, i: int, starts) -> tf_keras.layers.Layer | None:
    if options.restore == "unpool":  # by the reducer's maps
        return None
    if options.restore == "reproject":
        return alternatives.Reprojection(
            options.num_heads, options.mlp_size, name=_name("reprojection", i, starts)
        )
    return token_learner.TokenFuser(
        options.fuser_mixing,
        options.fuser_beta,
        use_norm=True,
        zero_init=True,
        use_residual=False,
        name=_name("token_fuser", i, starts),
    )
