"""timm's ViT in PyTorch, TokenLearner v1.1 between its blocks."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.rivals import sizes as sizes_lib


def _import_timm():
    """Imports timm, and with it a torchvision that may lack its compiled operators.

    The registry's is built for PyTorch with CUDA; beside PyTorch for CPUs its import
    fails, unless the operators that it describes are declared.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor d, Tensor s, float t) -> Tensor")
    import timm

    return timm, library  # whose operators live as long as itself


class TokenLearnerV11(nn.Module):
    """Learned tokens [B, S, C] of patch tokens [B, N, C]."""

    def __init__(self, channels: int, num_tokens: int):
        super().__init__()
        self.scores = nn.Sequential(
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 64),
            nn.GELU(approximate="tanh"),
            nn.Linear(64, num_tokens),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.scores(x).softmax(dim=1)  # [B, N, S]
        return maps.transpose(1, 2) @ x


def build(
    sizes: sizes_lib.Sizes, what: str, precision: str, is_compiled: bool = True
) -> Callable[[], None]:
    """The function to time: `what` is "forward" or "step"."""
    timm, _ = _import_timm()
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=sizes.image_px,
        patch_size=sizes.patch_px,
        embed_dim=sizes.hidden_size,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        num_classes=sizes_lib.NUM_CLASSES,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    if sizes.insert_before_block is not None:
        blocks = list(model.blocks)
        learner = TokenLearnerV11(sizes.hidden_size, sizes.num_tokens)
        blocks.insert(sizes.insert_before_block, learner)
        model.blocks = nn.Sequential(*blocks)
    return timed(model, sizes, what, precision, is_compiled=is_compiled)


def timed(
    model: nn.Module,
    sizes: sizes_lib.Sizes | sizes_lib.ClipSizes,
    what: str,
    precision: str,
    *,
    is_compiled: bool,
) -> Callable[[], None]:
    """A forward pass or a step of a model whose channels come first."""
    *shape, channels = sizes.input_shape
    images = torch.rand(sizes.batch_size, channels, *shape) * 2 - 1
    labels = torch.arange(sizes.batch_size)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=sizes_lib.LEARNING_RATE, momentum=sizes_lib.MOMENTUM
    )
    run = torch.compile(model) if is_compiled else model

    def precise():
        if precision == "bfloat16":
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def forward() -> None:
        with torch.inference_mode(), precise():
            run(images)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precise():
            logits = run(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    model.train(what == "step")
    return forward if what == "forward" else step
