"""Candidate operations of the `reid_cell` space, (B, C, H, W) -> (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).

DARTS (arXiv 1806.09055, section 3 and appendix A) with Auto-ReID's part-aware operation. A module computes one
operation for all E edges that leave a node of a cell, since they see the same input: ReLU, pools and what else has no
weights once, depthwise convolutions as one grouped convolution, 1×1 convolutions as one batched product, and the
norms in one call whose scale is the mixing weight itself. Its weights are those of E separate operations, one below
the other. A derived network's edge is the case E = 1.

Operations with weights take, beside x, the mixing weights (E,), a slice that chooses edges, and ReLU(x) if the caller
has it already.

In a search norms have no learned scale, in each candidate alike: it could grow past the mixing weight and hide it.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.search.edge_norm import EdgeNorm
from autoreid.search.part_aware import PartAware
from autoreid.search.pointwise import Pointwise, pointwise, rows_of
from autoreid.search.recompute import keep_inputs

#: All edges; a slice of one chooses it.
ALL = slice(None)


class Zero(nn.Module):
    """`none`: no connection."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the output's shape."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class Shared(nn.Module):
    """A candidate without weights: one map (B, C, H', W') is the same on every edge but for the mixing weight."""


class Skip(Shared):
    """The identity."""

    def forward(self, x: Tensor) -> Tensor:
        """X itself."""
        return x


class Pool(Shared):
    """A 3×3 pool that does not count its padding, and a norm."""

    def __init__(self, kind: str, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.pool = {"max": _max_pool, "avg": _avg_pool}[kind]
        self.stride = stride
        # The places of the largest values, in 64 bits each, weigh more than all else that the operation keeps.
        self.recomputes = kind == "max"
        self.norm = EdgeNorm(channels, 1, affine)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        pool = partial(self.pool, stride=self.stride)
        y = keep_inputs(pool, x) if self.recomputes and self.training else pool(x)
        output: Tensor = self.norm(y)
        return output


def _max_pool(x: Tensor, stride: int) -> Tensor:
    if x.device.type == "cpu":  # where pools of channels that lie together are several times faster
        return F.max_pool2d(x.contiguous(memory_format=torch.channels_last), 3, stride, 1).contiguous()
    return F.max_pool2d(x, 3, stride, 1)


def _avg_pool(x: Tensor, stride: int) -> Tensor:
    if x.device.type != "cpu":
        return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)
    # As a convolution, which is several times faster on CPUs: a sum, and how many pixels it is of.
    ones = x.new_ones(1, 1, 3, 3)
    counts = F.conv2d(x.new_ones(1, 1, *x.shape[2:]), ones, None, stride, 1)
    return (
        F.conv2d(x, ones.expand(x.shape[1], 1, 3, 3), None, stride, 1, groups=x.shape[1])
        * counts.reciprocal()
    )


class FactorizedReduce(nn.Module):
    """Halves the resolution by 1×1 convolutions: even pixels give one half of the channels, odd ones the other."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool, edges: int = 1) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, edges * (out_channels // 2), 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, edges * (out_channels - out_channels // 2), 1, stride=2, bias=False)
        self.norm = EdgeNorm(out_channels, edges, affine)
        self.edges = edges

    def forward(
        self, x: Tensor, scale_E: Tensor | None = None, edges: slice = ALL, rectified: Tensor | None = None
    ) -> Tensor:
        """(B, C_in, H, W) -> (B, E·C_out, ⌈H/2⌉, ⌈W/2⌉)."""
        x = F.relu(x) if rectified is None else rectified
        # Odd sizes have no last odd pixel: zeros stand in for it.
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        halves = [
            F.conv2d(pixels, rows_of(half.weight, self.edges, edges), stride=2)
            for half, pixels in ((self.even, x), (self.odd, shifted))
        ]
        chosen = len(range(self.edges)[edges])
        joined = torch.cat([half.unflatten(1, (chosen, -1)) for half in halves], dim=2).flatten(1, 2)
        return self.norm(joined, scale_E, edges)


def relu_conv_norm(in_channels: int, out_channels: int, affine: bool) -> nn.Sequential:
    """ReLU → 1×1 convolution → norm: brings a cell's input to its channels."""
    return nn.Sequential(
        nn.ReLU(),
        Pointwise(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels, affine=affine),
    )


class DepthwiseSeparable(nn.Module):
    """ReLU → depthwise convolution → 1×1 → norm, for each edge.

    Between forward and backward pass a search keeps the input only: the depthwise convolution is done again.
    """

    def __init__(
        self, channels: int, kernel: int, stride: int, dilation: int, affine: bool, edges: int
    ) -> None:
        super().__init__()
        wide = edges * channels
        self.depthwise = nn.Conv2d(wide, wide, kernel, groups=wide, bias=False)
        self.pointwise = nn.Conv2d(wide, wide, 1, groups=edges, bias=False)
        self.norm = EdgeNorm(channels, edges, affine)
        self.stride, self.dilation, self.edges = stride, dilation, edges

    def forward(
        self, x: Tensor, scale_E: Tensor | None = None, edges: slice = ALL, rectified: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W), or (B, E·C, H, W) with an input for each edge -> (B, E·C, H', W')."""
        depthwise = rows_of(self.depthwise.weight, self.edges, edges)
        weight = rows_of(self.pointwise.weight, self.edges, edges)
        compute = partial(_separable, stride=self.stride, dilation=self.dilation)
        x = F.relu(x) if rectified is None else rectified
        # Weights as arguments: the architect swaps them for the length of a forward pass only.
        inputs = (x, depthwise, weight)
        y = keep_inputs(compute, *inputs) if self.edges > 1 else compute(*inputs)
        return self.norm(y, scale_E, edges)


def _separable(x: Tensor, depthwise: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """(B, C or E·C, H, W), (E·C, 1, k, k) and (E·C, C, 1, 1) -> (B, E·C, H', W')."""
    y = _depthwise(x, depthwise, stride, dilation)
    return pointwise(y, weight, groups=len(weight) // weight.shape[1])


def _depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """A depthwise convolution that keeps the size, but for the stride, of a copy of x for each edge."""
    wide, padding = weight.shape[0], (weight.shape[2] - 1) // 2
    copies = wide // x.shape[1]
    if dilation == 2 and stride == 2:
        # It meets every other pixel only: a plain convolution of those.
        return F.conv2d(x[:, :, ::2, ::2].repeat(1, copies, 1, 1), weight, None, 1, padding, 1, wide)
    if dilation == 1 or x.device.type != "cpu":
        x = x.repeat(1, copies, 1, 1)
        return F.conv2d(x, weight, None, stride, dilation * padding, dilation, wide)
    # Of the four grids of every other pixel, each by itself: on CPUs a dilated backward pass takes four times as long.
    B, C, H, W = x.shape
    x = F.pad(x, (0, W % 2, 0, H % 2))
    height, width = x.shape[2] // 2, x.shape[3] // 2
    grids = x.view(B, C, height, 2, width, 2).permute(0, 3, 5, 1, 2, 4).reshape(4 * B, C, height, width)
    y = F.conv2d(grids.repeat(1, copies, 1, 1), weight, None, 1, padding, 1, wide)
    y = y.view(B, 2, 2, wide, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(B, wide, 2 * height, 2 * width)[:, :, :H, :W].contiguous()


class SeparableTwice(nn.Module):
    """DARTS's sep_conv: the depthwise separable block twice, the stride in the first."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool, edges: int) -> None:
        super().__init__()
        self.first = DepthwiseSeparable(channels, kernel, stride, 1, affine, edges)
        self.second = DepthwiseSeparable(channels, kernel, 1, 1, affine, edges)

    def forward(
        self, x: Tensor, scale_E: Tensor | None = None, edges: slice = ALL, rectified: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W) -> (B, E·C, H', W')."""
        output: Tensor = self.second(self.first(x, None, edges, rectified), scale_E, edges)
        return output


def build_operation(
    name: str, channels: int, stride: int, affine: bool, parts: int, edges: int = 1
) -> nn.Module:
    """One candidate by name, for some edges.

    Args:
        name: one of `genotype.CELL_OPERATIONS`.
        channels: C, of input and output.
        stride: 1, or 2 on a reduction cell's edges from its inputs.
        affine: whether norms learn a scale and shift; False in a search.
        parts: M, of the part-aware operation.
        edges: E, how many edges share the input.
    """
    match name:
        case "none":
            return Zero(stride)
        case "max_pool_3x3" | "avg_pool_3x3":
            return Pool(name[:3], channels, stride, affine)
        case "skip_connect":
            return Skip() if stride == 1 else FactorizedReduce(channels, channels, affine, edges)
        case "sep_conv_3x3" | "sep_conv_5x5":
            return SeparableTwice(channels, int(name[-1]), stride, affine, edges)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return DepthwiseSeparable(channels, int(name[-1]), stride, 2, affine, edges)
        case "part_aware":
            return PartAware(channels, stride, affine, parts, edges)
    raise ValueError(f"unknown operation {name!r}")
