"""What every library builds: plain descriptions of models."""

import dataclasses

NUM_CLASSES = 1000
LEARNING_RATE = 1e-3
MOMENTUM = 0.9
# X(2+1)D: channels of a stage and of its insides, blocks.
STAGES = ((24, 54, 3), (48, 108, 5), (96, 216, 11), (192, 432, 7))
HEAD_FILTERS = 2048
DROPOUT_RATE = 0.5
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A ViT with mean pooling, with TokenLearner v1.1 before a block or without.

    Args:
      image_px: side of the images.
      patch_px: side of a patch.
      hidden_size: channels.
      depth: blocks.
      num_heads: of the attention.
      batch_size: images at once.
      insert_before_block: None for no TokenLearner.
      num_tokens: that it learns.
    """

    image_px: int
    patch_px: int
    hidden_size: int
    depth: int
    num_heads: int
    batch_size: int
    insert_before_block: int | None = None
    num_tokens: int = 8

    @property
    def mlp_size(self) -> int:
        """Width of the MLPs."""
        return 4 * self.hidden_size

    @property
    def input_shape(self) -> list[int]:
        """Of one image."""
        return [self.image_px, self.image_px, 3]


@dataclasses.dataclass(frozen=True)
class ClipSizes:
    """An X(2+1)D.

    Args:
      num_frames: of a clip.
      image_px: side of the frames.
      batch_size: clips at once.
      module: of the last stage's blocks: "conv1d" for the backbone alone.
    """

    num_frames: int
    image_px: int
    batch_size: int
    module: str = "conv1d"

    @property
    def input_shape(self) -> list[int]:
        """Of one clip."""
        return [self.num_frames, self.image_px, self.image_px, 3]
