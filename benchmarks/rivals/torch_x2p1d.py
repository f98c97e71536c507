"""X(2+1)D's backbone in PyTorch: Conv3d with a side of 1."""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.rivals import sizes as sizes_lib
from benchmarks.rivals import timm_vit


def _conv(in_: int, filters: int, kernel: tuple[int, int, int], stride: int = 1):
    return nn.Conv3d(
        in_,
        filters,
        kernel,
        stride=(1, stride, stride),
        padding=tuple(k // 2 for k in kernel),
        bias=False,
    )


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm3d(
        channels,
        eps=sizes_lib.BATCH_NORM_EPSILON,
        momentum=1 - sizes_lib.BATCH_NORM_MOMENTUM,  # of the new
    )


class _Block(nn.Module):
    def __init__(self, in_: int, filters: int, inner: int, stride: int):
        super().__init__()
        self.inside = nn.Sequential(
            *(_conv(in_, inner, (1, 1, 1)), _norm(inner), nn.ReLU()),
            *(_conv(inner, inner, (1, 3, 3), stride), _norm(inner), nn.ReLU()),
            *(_conv(inner, inner, (3, 1, 1)), _norm(inner), nn.ReLU()),
            *(_conv(inner, filters, (1, 1, 1)), _norm(filters)),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            conv = _conv(in_, filters, (1, 1, 1), stride)
            self.shortcut = nn.Sequential(conv, _norm(filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.inside(x))


class X2Plus1D(nn.Module):
    """Frames [B, 3, T, H, W] -> logits [B, K]."""

    def __init__(self):
        super().__init__()
        channels = sizes_lib.STAGES[0][0]
        parts = [_conv(3, channels, (1, 3, 3), 2), _conv(channels, channels, (5, 1, 1))]
        parts += [_norm(channels), nn.ReLU()]
        for filters, inner, depth in sizes_lib.STAGES:
            for i in range(depth):
                parts.append(_Block(channels, filters, inner, 2 if i == 0 else 1))
                channels = filters
        inner = sizes_lib.STAGES[-1][1]
        parts += [_conv(channels, inner, (1, 1, 1)), _norm(inner), nn.ReLU()]
        parts += [_conv(inner, sizes_lib.HEAD_FILTERS, (1, 1, 1)), nn.ReLU()]
        self.grid = nn.Sequential(*parts)
        self.dropout = nn.Dropout(sizes_lib.DROPOUT_RATE)
        self.classifier = nn.Linear(sizes_lib.HEAD_FILTERS, sizes_lib.NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.grid(x).mean(dim=(2, 3, 4))))


def build(
    sizes: sizes_lib.ClipSizes, what: str, precision: str, is_compiled: bool = True
) -> Callable[[], None]:
    """The function to time: `what` is "forward" or "step"."""
    torch.manual_seed(0)
    return timm_vit.timed(X2Plus1D(), sizes, what, precision, is_compiled=is_compiled)
