"""Candidate operations of the `reid_cell` space, (B, C, H, W) -> (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).

The operations are those of DARTS (arXiv 1806.09055, section 3 and appendix A) and Auto-ReID's part-aware operation,
as its paper and as its released code describe it.
A module computes one operation for all E edges that leave a node of a cell, because these edges share their input:
ReLU, pools and other operations without weights once, depthwise convolutions as one grouped convolution, 1×1
convolutions as one batched product, and all norms in one call, with the mixing weights as their scales. Its weights
are those of E separate operations, concatenated. In a derived network E is 1.

In a search the norms of all candidates have no learned scale, because that could grow and cancel the mixing weight.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers import cpu
from autoreid.layers.batch_norm import Norm
from autoreid.layers.pointwise import Pointwise, rows_of
from autoreid.layers.recompute import RecomputedFunction, keep_inputs
from autoreid.layers.separable import separable
from autoreid.spaces.reid_cell.candidate import Candidate, EdgeInputs, Shared
from autoreid.spaces.reid_cell.edge_norm import EdgeNorm
from autoreid.spaces.reid_cell.part_aware import PartAware
from autoreid.spaces.reid_cell.part_conv import PartConv


class Skip(Shared):
    """The identity."""

    def shared_map(self, x: Tensor) -> Tensor:
        """Return x itself."""
        return x


class Pool(Shared):
    """A 3×3 pool followed by a norm. An average pool does not count the padding.

    Args:
        kind: "avg" or "max".
    """

    def __init__(self, kind: str, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.kind, self.stride = kind, stride
        self.norm = EdgeNorm(channels, 1, affine)

    def shared_map(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C, H', W')."""
        if self.kind == "avg":
            return _avg_pool(x, self.stride)
        # Recomputed, because saving the indices of the maxima, 64 bits each, would take more memory than the input.
        return keep_inputs(_MaxPool(self.stride), x)


class _MaxPool(RecomputedFunction):
    def __init__(self, stride: int) -> None:
        self.stride = stride

    def compute(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if cpu.uses_cpu_form(x):
            return cpu.max_pool(x, self.stride)
        return F.max_pool2d(x, 3, self.stride, 1)

    def gradients(
        self,
        gradient: Tensor,
        kept: tuple[Tensor, ...],  # noqa: ARG002
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        x = inputs[0].detach().requires_grad_()
        with torch.enable_grad():
            y = self.compute(x)
        return torch.autograd.grad(y, x, gradient)


def _avg_pool(x: Tensor, stride: int) -> Tensor:
    if cpu.uses_cpu_form(x):
        return cpu.avg_pool(x, stride)
    return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)


class FactorizedReduce(Candidate):
    """Halve the resolution by two 1×1 convolutions: one of the even pixels, one of the odd pixels.

    Each gives one half of the output channels.
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool, edges: int = 1) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, edges * (out_channels // 2), 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, edges * (out_channels - out_channels // 2), 1, stride=2, bias=False)
        self.norm = EdgeNorm(out_channels, edges, affine)
        self.edges = edges

    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm of a map (B, E·C_out, ⌈H/2⌉, ⌈W/2⌉)."""
        rectified, edges = inputs.rectified, inputs.edges
        odd_height, odd_width = rectified.shape[2] % 2, rectified.shape[3] % 2
        shifted = rectified
        if odd_height or odd_width:  # there is no last odd pixel: use zeros
            shifted = F.pad(rectified, (0, odd_width, 0, odd_height))
        halves = [
            F.conv2d(pixels, rows_of(half.weight, self.edges, edges), stride=2)
            for half, pixels in ((self.even, rectified), (self.odd, shifted[:, :, 1:, 1:]))
        ]
        chosen = len(range(self.edges)[edges])
        joined = torch.cat([half.unflatten(1, (chosen, -1)) for half in halves], dim=2).flatten(1, 2)
        return self.norm.of(joined, inputs.scale, edges)


class ReluConvNorm(Candidate):
    """ReLU → 1×1 convolution → norm, which maps an input of a cell to the cell's number of channels."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        # The names in checkpoints, numbered as in nn.Sequential(ReLU, convolution, norm).
        self.add_module("1", Pointwise(in_channels, out_channels, 1, bias=False))
        self.add_module("2", EdgeNorm(out_channels, 1, affine))

    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm of a map (B, C_out, H, W)."""
        convolution, norm = self._modules["1"], cast(EdgeNorm, self._modules["2"])
        assert convolution is not None  # noqa: S101
        return norm.of(convolution(inputs.rectified), inputs.scale, inputs.edges)


class DepthwiseSeparable(Candidate):
    """ReLU → depthwise convolution → 1×1 convolution → norm, for each edge."""

    def __init__(
        self, channels: int, kernel: int, stride: int, dilation: int, affine: bool, edges: int
    ) -> None:
        super().__init__()
        wide = edges * channels
        self.depthwise = nn.Conv2d(wide, wide, kernel, groups=wide, bias=False)
        self.pointwise = nn.Conv2d(wide, wide, 1, groups=edges, bias=False)
        self.norm = EdgeNorm(channels, edges, affine)
        self.stride, self.dilation, self.edges = stride, dilation, edges

    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm of a map (B, E·C, H', W').

        The rectified input is (B, C, H, W), or (B, E·C, H, W) if each edge has an input of its own.
        """
        y = separable(
            inputs.rectified,
            rows_of(self.depthwise.weight, self.edges, inputs.edges),
            rows_of(self.pointwise.weight, self.edges, inputs.edges),
            self.stride,
            self.dilation,
            recompute=self.edges > 1,
        )
        return self.norm.of(y, inputs.scale, inputs.edges)


class SeparableTwice(Candidate):
    """DARTS's sep_conv: two depthwise separable blocks, the first of which has the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool, edges: int) -> None:
        super().__init__()
        self.first = DepthwiseSeparable(channels, kernel, stride, 1, affine, edges)
        self.second = DepthwiseSeparable(channels, kernel, 1, 1, affine, edges)

    def middle(self, inputs: EdgeInputs) -> Norm | None:
        """Return the norm of the first block."""
        return self.first.last(inputs._replace(scale=None))

    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm of the second block, whose input is the output of the first."""
        assert inputs.middle is not None  # noqa: S101
        return self.second.last(inputs._replace(rectified=F.relu(inputs.middle)))


def build_operation(
    name: str, channels: int, stride: int, affine: bool, parts: int, edges: int = 1
) -> nn.Module:
    """Build a candidate operation by name.

    Args:
        name: one of `config.CELL_OPERATIONS` except "none", which computes nothing.
        channels: C, of input and output.
        stride: 1, or 2 on the edges from the inputs of a reduction cell.
        affine: whether norms learn a scale and shift; False in a search.
        parts: M, of the part-aware operations.
        edges: E, the number of edges that share the input.

    Raises:
        ValueError: there is no operation of this name.
    """
    match name:
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
        case "part_conv":
            return PartConv(channels, stride, affine, parts, edges)
    raise ValueError(f"unknown operation {name!r}")
