"""Candidate operations of the `reid_cell` space, (B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉).

DARTS (arXiv 1806.09055, section 3 and appendix A) with Auto-ReID's part-aware operation. In a search every norm
goes without learned scale, in each candidate alike: a scale could grow past the mixing weight and hide it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.search.part_aware import PartAware


class Zero(nn.Module):
    """`none`: no connection."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the output's shape."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """Halves the resolution by 1×1 convolutions: even pixels give one half of the channels, odd ones the other."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, ⌈H/2⌉, ⌈W/2⌉)."""
        x = F.relu(x)
        # Odd sizes have no last odd pixel: zeros stand in for it.
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def relu_conv_norm(in_channels: int, out_channels: int, affine: bool) -> nn.Sequential:
    """ReLU → 1×1 convolution → norm: brings a cell's input to its channels."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels, affine=affine),
    )


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU → depthwise convolution → 1×1 → norm."""
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def _separable(channels: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """The depthwise block twice, the stride in the first."""
    first = _depthwise(channels, kernel, stride, 1, affine)
    return nn.Sequential(*first, *_depthwise(channels, kernel, 1, 1, affine))


def _pool(pool: nn.Module, channels: int, affine: bool) -> nn.Sequential:
    return nn.Sequential(pool, nn.BatchNorm2d(channels, affine=affine))


def build_operation(name: str, channels: int, stride: int, affine: bool, parts: int) -> nn.Module:
    """One candidate by name.

    Args:
        name: one of `genotype.CELL_OPERATIONS`.
        channels: C, of input and output.
        stride: 1, or 2 on a reduction cell's edges from its inputs.
        affine: whether norms learn a scale and shift; False in a search.
        parts: M, of the part-aware operation.
    """
    match name:
        case "none":
            return Zero(stride)
        case "max_pool_3x3":
            return _pool(nn.MaxPool2d(3, stride, padding=1), channels, affine)
        case "avg_pool_3x3":
            return _pool(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), channels, affine)
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)
        case "sep_conv_3x3":
            return _separable(channels, 3, stride, affine)
        case "sep_conv_5x5":
            return _separable(channels, 5, stride, affine)
        case "dil_conv_3x3":
            return nn.Sequential(*_depthwise(channels, 3, stride, 2, affine))
        case "dil_conv_5x5":
            return nn.Sequential(*_depthwise(channels, 5, stride, 2, affine))
        case "part_aware":
            return PartAware(channels, stride, affine, parts)
    raise ValueError(f"unknown operation {name!r}")
