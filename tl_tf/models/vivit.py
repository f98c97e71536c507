"""Video Vision Transformers with TokenLearner: the models of Tables VII to IX."""

import dataclasses
from collections.abc import Sequence

import gin
import tensorflow as tf

from tl_tf.layers import embedding, encoder

ENCODERS = ("joint", "factorised")


class TemporalEncoder(encoder.Encoder):
    """Attends over the slices of a clip, each of them one token.

    Shapes: x [B, T, C] -> [B, C]
    Source: ViViT, arXiv 2103.15691, Section 3.3, model 2.
    """

    def __init__(self, options: encoder.Options, *, num_slices: int):
        super().__init__(name="temporal")
        with tf.name_scope(self.name):  # a class token is made here, not in a call
            self.add_encoder(options, grid=(1, num_slices))

    def call(
        self, x: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the pooled slices and the endpoints."""
        endpoints = {}
        x = self.encode(x, endpoints, training=training, seed=seed)  # [B, L, C]
        return self.pool(x), endpoints


class ViViT(encoder.Encoder):
    """A ViViT whose blocks may run on learned tokens; made by `build_vivit`.

    A slice is what a tubelet, or a sampled frame, makes of the clip's time: T' of them.
    TokenLearner looks at one slice. The blocks attend over all slices or, in the
    factorised encoder, over one, before a second encoder attends over time.

    Shapes: frames [B, T, Y, X, 3] -> [B, K]
    Source: Section 4; ViViT, arXiv 2103.15691, models 1 and 2.
    Differs: with head="token" the class token passes by TokenLearner; the paper's
      models with TokenLearner have none.
    """

    def __init__(
        self,
        options: encoder.Options,
        *,
        clip_size: Sequence[int],
        grid: Sequence[int],
        num_slices: int,
        embed: embedding.TubeletEmbed | embedding.FrameEmbed,
        temporal: encoder.Options | None,
    ):
        super().__init__(name="vivit")
        self.clip_size = tuple(clip_size)  # T, Y, X
        self.embed = embed
        self.add_encoder(
            options,
            grid=grid,
            num_slices=num_slices,
            slices_attended=num_slices if temporal is None else 1,
            num_kept=int(options.head == "token"),
        )
        self.temporal = None
        if temporal is not None:
            self.temporal = TemporalEncoder(temporal, num_slices=num_slices)
        self.add_head(options)

    @property
    def tubelet_frames(self) -> int:
        """Frames in a tubelet; 1 where frames are sampled."""
        if isinstance(self.embed, embedding.TubeletEmbed):
            return self.embed.tubelet_size[0]
        return 1

    def call(
        self, frames: tf.Tensor, training: bool = False, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns float32 logits and the endpoints.

        In the factorised encoder the endpoints of the blocks are [B * T', L, C], and
        those over time begin with "temporal/".

        Args:
          frames: -1..1, of the number and size the model was built for.
          training: uses dropout and stochastic depth.
          seed: int32 [2], of every draw; needed in training unless all rates are 0.
        Raises:
          ValueError: frames have another size or number, or the seed is missing.
        """
        if tuple(frames.shape[1:]) != (*self.clip_size, 3):
            count, *size = self.clip_size
            raise ValueError(
                f"vivit: built for {count} frames of {size} pixels and 3 channels, got"
                f" {frames.shape}. Set build_vivit.num_frames and build_vivit.image_px"
                " to the data set's; the crops of training and evaluation must be"
                " equal."
            )
        endpoints = {}
        x = self.embed(frames)  # [B, T', H, W, C]
        endpoints["embedding"] = x
        places = self.slices_attended * self.grid[0] * self.grid[1]
        x = tf.reshape(x, [-1, places, x.shape[-1]])  # [B, T' * N, C] or [B * T', N, C]
        x = self.encode(x, endpoints, training=training, seed=seed)
        x = self.pool(x)  # [B, C] or [B * T', C]
        if self.temporal is not None:
            x = tf.reshape(x, [-1, self.num_slices, x.shape[-1]])  # [B, T', C]
            if seed is not None:
                seed = tf.random.fold_in(seed, len(self.blocks) + 1)
            x, over_time = self.temporal(x, training=training, seed=seed)  # [B, C]
            endpoints |= {f"temporal/{name}": y for name, y in over_time.items()}
        return self.classify(x, endpoints), endpoints


@gin.configurable
def build_vivit(
    num_classes: int = gin.REQUIRED,
    *,
    num_frames: int = 32,
    image_px: int | Sequence[int] = 224,
    patch_px: int | Sequence[int] = 16,
    tubelet_frames: int = 2,
    num_sampled_frames: int | None = None,
    encoder_form: str = "joint",
    temporal_depth: int = 4,
    temporal_num_heads: int | None = None,
    temporal_mlp_size: int | None = None,
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
    head: str = "gap",
    representation_size: int | None = None,
    head_bias: float = 0.0,
    dropout_rate: float = 0.0,
    attention_dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    nested_dropout: bool = False,
    used_tokens: int | None = None,
    recompute: bool = False,
    window_slices: int = 1,
) -> ViViT:
    """Builds a ViViT, with or without TokenLearner.

    Args:
      num_classes: K, at least 1.
      num_frames: T, frames of a clip.
      image_px: side of the frames, or height and width.
      patch_px: side of a patch, or height and width; at most the frames'.
      tubelet_frames: frames of a tubelet, at most num_frames.
      num_sampled_frames: n frames, spread evenly over the clip, are embedded one by one
        instead of tubelets; in 1..num_frames, or None for tubelets.
      encoder_form: "joint" (all slices attend to each other, the paper's) or
        "factorised" (each slice within itself, then over time: ViViT's model 2).
      temporal_depth: blocks over time in the factorised encoder.
      temporal_num_heads: of those; None for num_heads.
      temporal_mlp_size: of those; None for mlp_size.
      variant: "S", "B", "L" or "H": the sizes that follow, where they are None.
      hidden_size: C, a multiple of num_heads.
      depth: blocks, before the extra ones.
      num_heads: A.
      mlp_size: width of the MLP's inner layer.
      extra_blocks: more blocks at the end ("24+11" is 11 of them).
      insert_before_block: where TokenLearner stands, from 0; None for a plain ViViT.
      num_tokens: S of a slice, at least 1.
      tokenizer: "v1.0" (four convolutions, the paper's tables) or "v1.1" (an MLP).
      pooling: v1.0's "sum" (the authors' code) or "mean".
      restore: what follows a block behind TokenLearner, as `build_vit`.
      fuser_mixing: TokenFuser's "per_frame" (a slice, the authors' code) or "joint"
        (all slices attended to, equation 2).
      fuser_beta: TokenFuser's "mlp", "conv" (release of December 2021) or "linear"
        (equation 2).
      head: "gap" (mean over tokens), "gmp" (max), "gsp" (sum) or "token" (class token,
        of each of the two encoders of the factorised form; only with restore="none").
      representation_size: of a tanh layer before the classifier; None for none.
      head_bias: the classifier's at the start: -10 with the sigmoid loss.
      dropout_rate: of embedding and blocks, in [0, 1).
      attention_dropout_rate: of the attention weights, in [0, 1).
      drop_path_rate: stochastic depth of the last block, in [0, 1); it grows linearly
        from 0 at the first, in each encoder.
      nested_dropout: in training each example keeps the first so many of its learned
        tokens, so that used_tokens may be lowered later (beyond the paper; with restore
        "none", heads "gap" and "gmp").
      used_tokens: learned tokens in inference, a divisor of num_tokens; None for all.
      recompute: in training each block keeps its input alone for the backward pass,
        which computes the rest anew: less memory, a third more work.
      window_slices: slices that TokenLearner v1.1 pools together into S tokens (beyond
        the paper); a divisor of their number.

    Raises:
      ValueError: an argument is out of range; names the binding to change.
    """
    options = encoder.Options(
        model="vivit",
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
        window_slices=window_slices,
    )
    image_size, patch_size, grid = options.grid_of(image_px, patch_px)
    options.check(
        1 <= tubelet_frames <= num_frames,
        "tubelet_frames",
        f"in 1..{num_frames} (num_frames)",
        tubelet_frames,
    )
    options.check(
        num_sampled_frames is None or 1 <= num_sampled_frames <= num_frames,
        "num_sampled_frames",
        f"None or in 1..{num_frames} (num_frames)",
        num_sampled_frames,
    )
    options.check(
        encoder_form in ENCODERS, "encoder_form", f"one of {ENCODERS}", encoder_form
    )
    options.check(
        head != "token" or restore == "none",
        "head",
        f"one of {tuple(encoder.POOLS)} with restore={restore!r}, whose last grid no"
        " class token reads",
        head,
    )
    if num_sampled_frames is None:
        num_slices = num_frames // tubelet_frames
        embed = embedding.TubeletEmbed(
            options.hidden_size, (tubelet_frames, *patch_size), name="embed"
        )
    else:
        num_slices = num_sampled_frames
        embed = embedding.FrameEmbed(
            options.hidden_size, patch_size, num_slices, name="embed"
        )
    windows_of = num_slices if encoder_form == "joint" else 1
    options.check(
        windows_of % window_slices == 0,
        "window_slices",
        f"a divisor of {windows_of}, the slices that attend to each other",
        window_slices,
    )
    temporal = None
    if encoder_form == "factorised":
        temporal = _temporal_options(
            options, temporal_depth, temporal_num_heads, temporal_mlp_size
        )
    model = ViViT(
        options,
        clip_size=(num_frames, *image_size),
        grid=grid,
        num_slices=num_slices,
        embed=embed,
        temporal=temporal,
    )
    model.build([None, num_frames, *image_size, 3])
    return model


def _temporal_options(
    options: encoder.Options, depth: int, num_heads: int | None, mlp_size: int | None
) -> encoder.Options:
    """Those of the second encoder, which has no TokenLearner."""
    num_heads = options.num_heads if num_heads is None else num_heads
    mlp_size = options.mlp_size if mlp_size is None else mlp_size
    options.check_at_least_1("temporal_depth", depth)
    options.check_at_least_1("temporal_mlp_size", mlp_size)
    options.check(
        num_heads >= 1 and options.hidden_size % num_heads == 0,
        "temporal_num_heads",
        f"a divisor of hidden_size={options.hidden_size}",
        num_heads,
    )
    return dataclasses.replace(
        options,
        depth=depth,
        num_heads=num_heads,
        mlp_size=mlp_size,
        extra_blocks=0,
        insert_before_block=None,
        restore="none",
        nested_dropout=False,
        used_tokens=None,
    )
