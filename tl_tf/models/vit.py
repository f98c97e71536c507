"""Vision Transformers with TokenLearner: every image model of Tables I to VI."""

import math
import operator
from collections.abc import Mapping, Sequence

import gin
import tensorflow as tf

from tl_tf.layers import embedding, encoder


class ViT(encoder.Encoder):
    """A ViT whose blocks may run on learned tokens; made by `build_vit`.

    Shapes: images [B, Y, X, 3] -> [B, K]
    Source: Sections 3.1 and 3.5, Figure 3; ViT, arXiv 2010.11929.
    Differs: with head="token" the class token is one of the places that TokenLearner
      v1.1 pools, and the head reads the first learned token: as the authors' code.
    """

    def __init__(
        self,
        options: encoder.Options,
        *,
        image_size: Sequence[int],
        patch_size: Sequence[int],
        grid: Sequence[int],
        stem: embedding.ConvStem | None,
        pools: Mapping[int, Sequence[int]],
    ):
        super().__init__(name="vit")
        self.image_size = tuple(image_size)
        self.stem = stem
        stride = math.prod(stem.strides) if stem else 1
        self.embed = embedding.PatchEmbed(
            options.hidden_size, [side // stride for side in patch_size], name="embed"
        )
        self.add_encoder(options, grid=grid, pools=pools)
        self.add_head(options)

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
        x = self.encode(x, endpoints, training=training, seed=seed)  # [B, L, C]
        return self.classify(self.pool(x), endpoints), endpoints


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
    nested_dropout: bool = False,
    used_tokens: int | None = None,
    recompute: bool = False,
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
      nested_dropout: in training each example keeps the first so many of its learned
        tokens, so that used_tokens may be lowered later (beyond the paper; with restore
        "none", heads "gap" and "gmp").
      used_tokens: learned tokens in inference, a divisor of num_tokens; None for all.
      recompute: in training each block keeps its input alone for the backward pass,
        which computes the rest anew: less memory, a third more work.

    Raises:
      ValueError: an argument is out of range; names the binding to change.
    """
    options = encoder.Options(
        model="vit",
        num_classes=num_classes,
        variant=variant,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=num_heads,
        mlp_size=mlp_size,
        extra_blocks=extra_blocks,
        insert_before_block=insert_before_block,
        num_tokens=num_tokens,
        tokenizer=tokenizer,
        pooling=pooling,
        restore=restore,
        fuser_mixing=fuser_mixing,
        fuser_beta=fuser_beta,
        head=head,
        representation_size=representation_size,
        head_bias=head_bias,
        dropout_rate=dropout_rate,
        attention_dropout_rate=attention_dropout_rate,
        drop_path_rate=drop_path_rate,
        nested_dropout=nested_dropout,
        used_tokens=used_tokens,
        recompute=recompute,
    )
    image_size, patch_size, grid = options.grid_of(image_px, patch_px)
    _check_pools(options, pool_before_blocks, pool_grids, grid=grid)
    needs_grid = bool(pool_before_blocks) or (
        insert_before_block is not None and tokenizer == "v1.0"
    )
    options.check(
        head != "token" or not needs_grid,
        "head",
        f"one of {tuple(encoder.POOLS)} with tokenizer v1.0 or pooling",
        head,
    )
    model = ViT(
        options,
        image_size=image_size,
        patch_size=patch_size,
        grid=grid,
        stem=_build_stem(options, stem_filters, stem_strides, image_size, patch_size),
        pools=dict(zip(pool_before_blocks, pool_grids, strict=True)),
    )
    model.build([None, *image_size, 3])
    return model


def _build_stem(
    options: encoder.Options,
    filters: Sequence[int],
    strides: Sequence[int],
    image_size,
    patch_size,
) -> embedding.ConvStem | None:
    stride = math.prod(strides)
    options.check(
        len(filters) == len(strides)
        and all(size >= 1 for size in (*filters, *strides))
        and not any(side % stride for side in (*image_size, *patch_size)),
        "stem_strides",
        f"one for each of stem_filters={filters}, their product a divisor of"
        f" patch_px={patch_size} and image_px={image_size}",
        strides,
    )
    return embedding.ConvStem(filters, strides, name="stem") if filters else None


def _check_pools(
    options: encoder.Options, blocks, grids, *, grid: tuple[int, int]
) -> None:
    options.check(
        not (blocks and options.insert_before_block is not None),
        "pool_before_blocks",
        "empty with insert_before_block: one of the two reduces the tokens",
        blocks,
    )
    depth = options.depth
    options.check(
        list(blocks) == sorted(set(blocks)) and all(0 <= i < depth for i in blocks),
        "pool_before_blocks",
        f"ascending, in 0..{depth - 1} (depth {depth} with the extra blocks)",
        blocks,
    )
    options.check(
        len(grids) == len(blocks), "pool_grids", f"{len(blocks)} grids", grids
    )
    for smaller in grids:
        options.check(
            len(smaller) == 2
            and min(smaller) >= 1
            and not any(map(operator.mod, grid, smaller)),
            "pool_grids",
            f"grids that divide {grid[0]}x{grid[1]}",
            smaller,
        )
        grid = tuple(smaller)
