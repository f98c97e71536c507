"""Vision Transformers with TokenLearner: every image model of Tables I to VI."""

import math
import operator
from collections.abc import Sequence

import gin
import tensorflow as tf
import tf_keras

from tl_tf.layers import alternatives, attention, embedding, token_learner

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


class ViT(tf_keras.Model):
    """A ViT whose blocks may run on learned tokens; made by `build_vit`.

    Shapes: images [B, Y, X, 3] -> [B, K]
    Source: Sections 3.1 and 3.5, Figure 3; ViT, arXiv 2010.11929.
    Differs: with head="token" the class token is one of the places that TokenLearner
      v1.1 pools, and the head reads the first learned token: as the authors' code.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: Sequence[int],
        patch_size: Sequence[int],
        stem: embedding.ConvStem | None,
        hidden_size: int,
        block_names: Sequence[str],
        num_heads: int,
        mlp_size: int,
        reducers: dict[int, tf_keras.layers.Layer],
        restorers: dict[int, tf_keras.layers.Layer | None],
        head: str,
        representation_size: int | None,
        head_bias: float,
        dropout_rate: float,
        attention_dropout_rate: float,
        drop_path_rate: float,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.image_size = tuple(image_size)
        self.grid = tuple(
            i // p for i, p in zip(image_size, patch_size, strict=True)
        )  # H, W
        self.head = head
        self.dropout_rate = dropout_rate
        self.stem = stem
        stride = math.prod(stem.strides) if stem else 1
        self.embed = embedding.PatchEmbed(
            hidden_size, [side // stride for side in patch_size], name="embed"
        )
        self.class_token = None
        if head == "token":
            self.class_token = self.add_weight(
                name="class_token", shape=(1, 1, hidden_size), initializer="zeros"
            )
        self.position = embedding.PositionEmbed(name="position")
        self.blocks = [
            attention.EncoderBlock(
                num_heads,
                mlp_size,
                dropout_rate=dropout_rate,
                attention_dropout_rate=attention_dropout_rate,
                drop_path_rate=drop_path_rate * i / max(len(block_names) - 1, 1),
                name=name,
            )
            for i, name in enumerate(block_names)
        ]
        self.reducers = {str(i): layer for i, layer in reducers.items()}
        self.restorers = {str(i): layer for i, layer in restorers.items()}
        self.norm = attention.layer_norm("norm")
        self.pre_logits = None
        if representation_size is not None:
            self.pre_logits = tf_keras.layers.Dense(
                representation_size,
                activation="tanh",
                kernel_initializer="lecun_normal",
                name="pre_logits",
            )
        self.classifier = tf_keras.layers.Dense(
            num_classes,
            kernel_initializer="zeros",
            bias_initializer=tf_keras.initializers.Constant(head_bias),
            dtype="float32",
            name="classifier",
        )

    def call(
        self, images: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns float32 logits and the endpoints.

        Args:
          images: -1..1, of the size the model was built for.
          training: uses dropout and stochastic depth.
          seed: int32 [2], of every draw; needed in training unless all rates are 0.
        Raises:
          ValueError: images has another size, or the seed is missing.
        """
        if tuple(images.shape[1:]) != (*self.image_size, 3):
            raise ValueError(
                f"vit: built for images of {list(self.image_size)} pixels and 3"
                f" channels, got {images.shape}. Set build_vit.image_px to the data"
                " set's."
            )
        endpoints = {}
        x = images if self.stem is None else self.stem(images)  # [B, Y', X', C']
        x = self.embed(x)  # [B, H, W, C]
        endpoints["embedding"] = x
        x = tf.reshape(x, [-1, self.grid[0] * self.grid[1], x.shape[-1]])  # [B, N, C]
        if self.class_token is not None:
            token = tf.cast(self.class_token, x.dtype)
            token = tf.repeat(token, tf.shape(x)[0], axis=0)  # [B, 1, C]
            x = tf.concat([token, x], axis=1)  # [B, 1 + N, C]
        x = self.position(x)
        x = attention.dropout(
            x, self.dropout_rate, training=training, seed=seed, draw=len(self.blocks)
        )
        endpoints["position"] = x

        for i, block in enumerate(self.blocks):
            block_seed = None if seed is None else tf.random.fold_in(seed, i)
            grid = x
            if str(i) in self.reducers:
                x, maps = self._reduce(i, x, endpoints)  # [B, S, C], [B, N, S]
            x = block(x, training=training, seed=block_seed)
            endpoints[f"block_{i}"] = x
            if str(i) in self.restorers:
                x = self._restore(i, x, grid, maps, endpoints)  # [B, N, C]

        x = self.norm(x)
        endpoints["norm"] = x
        x = x[:, 0] if self.head == "token" else POOLS[self.head](x, axis=1)  # [B, C]
        if self.pre_logits is not None:
            x = self.pre_logits(x)
        endpoints["pre_logits"] = x
        return self.classifier(x), endpoints

    def _reduce(self, i: int, x: tf.Tensor, endpoints: dict):
        """Fewer tokens before block i.  -> [B, S, C], maps [B, N, S] or None."""
        layer = self.reducers[str(i)]
        grid = self.grid
        if isinstance(layer, alternatives.GridPool):
            before = [int(j) for j in self.reducers if int(j) < i]
            if before:
                grid = self.reducers[str(max(before))].grid
            x = layer(tf.reshape(x, [-1, *grid, x.shape[-1]]))  # [B, S, C]
            endpoints[f"block_{i}/pooled"] = x
            return x, None
        if isinstance(layer, token_learner.TokenLearner):
            x, maps = layer(tf.reshape(x, [-1, *grid, x.shape[-1]]))
            maps = tf.reshape(maps, [-1, grid[0] * grid[1], maps.shape[-1]])
        else:
            x, maps = layer(x)  # [B, S, C], [B, N, S]
        endpoints[f"block_{i}/learned_tokens"] = x
        of_patches = maps[:, -grid[0] * grid[1] :]  # without the class token's
        endpoints[f"block_{i}/token_maps"] = tf.reshape(
            of_patches, [-1, 1, *grid, maps.shape[-1]]
        )  # [B, T = 1, H, W, S]
        return x, maps

    def _restore(self, i: int, y: tf.Tensor, x: tf.Tensor, maps, endpoints: dict):
        """The grid x with the tokens y written onto it.  -> [B, N, C]"""
        layer = self.restorers[str(i)]
        if isinstance(layer, alternatives.Reprojection):
            return layer(y, x)
        if layer is None:
            fused = alternatives.unpool(y, maps)
        else:
            fused = layer(y[:, tf.newaxis], x[:, tf.newaxis])[:, 0]  # T = 1
        endpoints[f"block_{i}/fused"] = fused
        return x + fused


@gin.configurable
def build_vit(
    num_classes: int = gin.REQUIRED,
    *,
    image_px: int | Sequence[int] = 224,
    patch_px: int | Sequence[int] = 16,
    variant: str = "B",
    hidden_size: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_size: int | None = None,
    extra_blocks: int = 0,
    insert_before_block: int | None = None,
    num_tokens: int = 8,
    tokenizer: str = "v1.1",
    pooling: str = "sum",
    restore: str = "none",
    fuser_mixing: str = "per_frame",
    fuser_beta: str = "mlp",
    pool_before_blocks: Sequence[int] = (),
    pool_grids: Sequence[Sequence[int]] = (),
    stem_filters: Sequence[int] = (),
    stem_strides: Sequence[int] = (),
    head: str = "gap",
    representation_size: int | None = None,
    head_bias: float = 0.0,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ViT:
    """Builds a ViT, with or without TokenLearner.

    Args:
      num_classes: K, at least 1.
      image_px: side of the images, or height and width.
      patch_px: side of a patch, or height and width; at most the image's.
      variant: "S", "B", "L" or "H": the sizes that follow, where they are None.
      hidden_size: C, a multiple of num_heads.
      depth: blocks, before the extra ones.
      num_heads: A.
      mlp_size: width of the MLP's inner layer.
      extra_blocks: more blocks at the end ("12+9" is 9 of them).
      insert_before_block: where TokenLearner stands, from 0; None for a plain ViT.
      num_tokens: S, at least 1.
      tokenizer: "v1.0" (four convolutions, the paper's tables) or "v1.1" (an MLP).
      pooling: v1.0's "sum" (the authors' code) or "mean".
      restore: "none" is Figure 3 (a). With another, every block from
        insert_before_block on is TokenLearner, Transformer, and back to the grid:
        "fuser" is Figure 3 (b); "unpool" by TokenLearner's own maps and "reproject" by
        one more Transformer layer are Figure 7's.
      fuser_mixing: TokenFuser's "per_frame" (the authors' code, a matrix and a bias)
        or "joint" (equation 2, a matrix).
      fuser_beta: TokenFuser's "mlp", "conv" (release of December 2021, Table V) or
        "linear" (equation 2).
      pool_before_blocks: blocks before which the grid is averaged (Table VI).
      pool_grids: rows and columns that are left at each of them.
      stem_filters: of 3x3 convolutions before the patches, which small pictures like;
        none in the paper.
      stem_strides: of each of them; their product divides patch_px.
      head: "gap" (mean over tokens), "gmp" (max), "gsp" (sum) or "token" (class token;
        not with v1.0, whose convolutions want a grid, nor with pooling).
      representation_size: of a tanh layer before the classifier; None for none.
      head_bias: the classifier's at the start: -10 with the sigmoid loss.
      dropout_rate: of embedding and blocks, in [0, 1).
      attention_dropout_rate: of the attention weights, in [0, 1).
      drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly
        from 0 at the first.

    Raises:
      ValueError: an argument is out of range; names the binding to change.
    """
    _check(variant in VARIANTS, "variant", f"one of {tuple(VARIANTS)}", variant)
    given = (hidden_size, depth, num_heads, mlp_size)
    hidden_size, depth, num_heads, mlp_size = (
        size if size is not None else default
        for size, default in zip(given, VARIANTS[variant], strict=True)
    )
    image_size, patch_size = _pair(image_px), _pair(patch_px)
    _check_at_least_1(
        num_classes=num_classes,
        depth=depth,
        num_heads=num_heads,
        mlp_size=mlp_size,
        num_tokens=num_tokens,
        patch_px=min(patch_size),
        representation_size=1 if representation_size is None else representation_size,
    )
    grid = tuple(i // p for i, p in zip(image_size, patch_size, strict=True))
    _check(min(grid) >= 1, "patch_px", f"at most image_px={image_px}", patch_px)
    _check(extra_blocks >= 0, "extra_blocks", ">= 0", extra_blocks)
    _check(
        hidden_size >= 1 and hidden_size % num_heads == 0,
        "hidden_size",
        f"a multiple of num_heads={num_heads}",
        hidden_size,
    )
    _check_rates(
        dropout_rate=dropout_rate,
        attention_dropout_rate=attention_dropout_rate,
        drop_path_rate=drop_path_rate,
    )
    for name, value, choices in (
        ("tokenizer", tokenizer, TOKENIZERS),
        ("pooling", pooling, token_learner.POOLINGS),
        ("restore", restore, RESTORES),
        ("fuser_mixing", fuser_mixing, ("per_frame", "joint")),
        ("fuser_beta", fuser_beta, token_learner.BETAS),
        ("head", head, HEADS),
    ):
        _check(value in choices, name, f"one of {tuple(choices)}", value)
    depth += extra_blocks
    _check_places(insert_before_block, pool_before_blocks, restore=restore, depth=depth)
    _check_pools(pool_before_blocks, pool_grids, grid=grid, depth=depth)
    needs_grid = bool(pool_before_blocks) or (
        insert_before_block is not None and tokenizer == "v1.0"
    )
    _check(
        head != "token" or not needs_grid,
        "head",
        f"one of {tuple(POOLS)} with tokenizer v1.0 or pooling",
        head,
    )

    def name_of(what: str, i: int) -> str:
        # A stage ends where fewer tokens begin; the cost table adds it up.
        starts = pool_before_blocks or [insert_before_block]
        stage = 1 + sum(j is not None and i >= j for j in starts)
        return f"stage_{stage}/{what}_{i}"

    def reducer(i: int) -> tf_keras.layers.Layer:
        name = name_of("token_learner", i)
        if tokenizer == "v1.0":
            return token_learner.TokenLearner(num_tokens, pooling, name=name)
        return token_learner.TokenLearnerV11(num_tokens, name=name)

    def restorer(i: int) -> tf_keras.layers.Layer | None:
        if restore == "unpool":  # by the reducer's maps
            return None
        if restore == "reproject":
            name = name_of("reprojection", i)
            return alternatives.Reprojection(num_heads, mlp_size, name=name)
        return token_learner.TokenFuser(
            fuser_mixing,
            fuser_beta,
            use_norm=True,
            zero_init=True,
            use_residual=False,
            name=name_of("token_fuser", i),
        )

    reducers = {
        i: alternatives.GridPool(pool_grid, name=name_of("grid_pool", i))
        for i, pool_grid in zip(pool_before_blocks, pool_grids, strict=True)
    }
    restorers = {}
    if insert_before_block is not None:
        last = insert_before_block if restore == "none" else depth - 1
        learning = range(insert_before_block, last + 1)
        reducers = {i: reducer(i) for i in learning}
        restorers = {i: restorer(i) for i in learning if restore != "none"}
    model = ViT(
        num_classes,
        image_size=image_size,
        patch_size=patch_size,
        stem=_build_stem(stem_filters, stem_strides, image_size, patch_size),
        hidden_size=hidden_size,
        block_names=[name_of("block", i) for i in range(depth)],
        num_heads=num_heads,
        mlp_size=mlp_size,
        reducers=reducers,
        restorers=restorers,
        head=head,
        representation_size=representation_size,
        head_bias=head_bias,
        dropout_rate=dropout_rate,
        attention_dropout_rate=attention_dropout_rate,
        drop_path_rate=drop_path_rate,
        name="vit",
    )
    model.build([None, *image_size, 3])
    return model


def _build_stem(
    filters: Sequence[int], strides: Sequence[int], image_size, patch_size
) -> embedding.ConvStem | None:
    stride = math.prod(strides)
    _check(
        len(filters) == len(strides)
        and all(size >= 1 for size in (*filters, *strides))
        and not any(side % stride for side in (*image_size, *patch_size)),
        "stem_strides",
        f"one for each of stem_filters={filters}, their product a divisor of"
        f" patch_px={patch_size} and image_px={image_size}",
        strides,
    )
    return embedding.ConvStem(filters, strides, name="stem") if filters else None


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _check_at_least_1(**values: int) -> None:
    for name, value in values.items():
        _check(value >= 1, name, ">= 1", value)


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        _check(0 <= rate < 1, name, "in [0, 1)", rate)


def _check_places(
    insert_before_block: int | None, pool_before_blocks, *, restore: str, depth: int
) -> None:
    _check(
        insert_before_block is None or 0 <= insert_before_block < depth,
        "insert_before_block",
        f"None or in 0..{depth - 1} (depth {depth} with the extra blocks)",
        insert_before_block,
    )
    _check(
        insert_before_block is not None or restore == "none",
        "restore",
        "'none' without insert_before_block",
        restore,
    )
    _check(
        not (pool_before_blocks and insert_before_block is not None),
        "pool_before_blocks",
        "empty with insert_before_block: one of the two reduces the tokens",
        pool_before_blocks,
    )


def _check_pools(blocks, grids, *, grid: tuple[int, int], depth: int) -> None:
    _check(
        list(blocks) == sorted(set(blocks)) and all(0 <= i < depth for i in blocks),
        "pool_before_blocks",
        f"ascending, in 0..{depth - 1} (depth {depth} with the extra blocks)",
        blocks,
    )
    _check(len(grids) == len(blocks), "pool_grids", f"{len(blocks)} grids", grids)
    for smaller in grids:
        _check(
            len(smaller) == 2
            and min(smaller) >= 1
            and not any(map(operator.mod, grid, smaller)),
            "pool_grids",
            f"grids that divide {grid[0]}x{grid[1]}",
            smaller,
        )
        grid = tuple(smaller)


def _check(is_valid: bool, argument: str, wanted: str, got) -> None:
    if not is_valid:
        raise ValueError(
            f"vit: {argument} must be {wanted}, got {got!r}. Set"
            f" build_vit.{argument} in the model's gin file."
        )
