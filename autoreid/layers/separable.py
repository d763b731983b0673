"""Depthwise separable convolutions of all edges that leave a source, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.layers.pointwise import pointwise
from autoreid.layers.recompute import Operation, keep_inputs


def separable(
    x: Tensor, depthwise_weight: Tensor, weight: Tensor, stride: int, dilation: int, recompute: bool
) -> Tensor:
    """A depthwise convolution, then a 1×1 convolution, both for each of E edges.

    Args:
        x: (B, C, H, W) that all edges share, or (B, E·C, H, W).
        depthwise_weight: (E·C, 1, k, k).
        weight: (E·C, C, 1, 1), of the 1×1.
        recompute: whether the backward pass does the depthwise convolution again instead of keeping its output.

    Returns:
        (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).
    """
    if x.device.type != "cpu" and x.shape[1] < len(weight) and depthwise_weight.shape[2] == 3:
        return dense(x, depthwise_weight, weight, stride, dilation)
    operation = Separable(stride, dilation)
    inputs = (x, depthwise_weight, weight)
    return keep_inputs(operation, *inputs) if recompute else operation.compute(*inputs)


def dense(x: Tensor, depthwise_weight: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """The same as one convolution, whose weights are products of both: for edges that share their input.

    That reads x once, where otherwise each edge has a copy of it and a map between the two convolutions. Nine times
    the multiplications are little on a GPU, which waits for its memory here, and much on a CPU.
    """
    channels = x.shape[1]
    by_edge = weight.view(-1, channels, channels, 1, 1) * depthwise_weight.view(-1, 1, channels, 3, 3)
    return F.conv2d(x, by_edge.flatten(0, 1), None, stride, dilation, dilation)


class Separable(Operation):
    """`separable` of x and both weights. The gradient does the depthwise convolution again, but not the 1×1."""

    def __init__(self, stride: int, dilation: int) -> None:
        self.stride, self.dilation = stride, dilation

    def compute(self, *inputs: Tensor) -> Tensor:
        """The output."""
        x, depthwise_weight, weight = inputs
        y = depthwise(x, depthwise_weight, self.stride, self.dilation)
        return pointwise(y, weight, groups=len(weight) // weight.shape[1])

    def gradients(
        self,
        gradient: Tensor,
        kept: tuple[Tensor, ...],  # noqa: ARG002
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """In x and both weights, as far as they are wanted."""
        x, depthwise_weight, weight = inputs
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (x, depthwise_weight)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.set_grad_enabled(bool(wanted)):
            y = depthwise(leaves[0], leaves[1], self.stride, self.dilation)
        groups, channels = len(weight) // weight.shape[1], weight.shape[1]
        # Edge by edge: (B, E, C, pixels), and weights (E, C, C).
        gradient = gradient.to(y.dtype).unflatten(1, (groups, channels)).flatten(3)
        of_weight = None
        if weight.requires_grad:
            maps = y.detach().unflatten(1, (groups, channels)).flatten(3)
            of_weight = (gradient @ maps.transpose(2, 3)).sum(0).view_as(weight).to(weight.dtype)
        found: Iterator[Tensor] = iter(())
        if wanted:
            matrices = weight.view(groups, channels, channels).to(y.dtype)
            of_y = (matrices.transpose(1, 2) @ gradient).view_as(y)
            found = iter(torch.autograd.grad(y, wanted, of_y))
        return *(next(found) if leaf.requires_grad else None for leaf in leaves), of_weight


def depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """A depthwise convolution that keeps the size, but for the stride, of a copy of x for each edge."""
    wide, padding = weight.shape[0], (weight.shape[2] - 1) // 2
    copies = wide // x.shape[1]
    if dilation == 2 and stride == 2:
        # It meets every other pixel only: a plain convolution of those.
        return F.conv2d(_copies(x[:, :, ::2, ::2], copies), weight, None, 1, padding, 1, wide)
    if dilation == 1 or x.device.type != "cpu":
        return F.conv2d(_copies(x, copies), weight, None, stride, dilation * padding, dilation, wide)
    # Of the four grids of every other pixel, each by itself: on CPUs a dilated backward pass takes four times as long.
    B, C, H, W = x.shape
    x = F.pad(x, (0, W % 2, 0, H % 2))
    height, width = x.shape[2] // 2, x.shape[3] // 2
    grids = x.view(B, C, height, 2, width, 2).permute(0, 3, 5, 1, 2, 4).reshape(4 * B, C, height, width)
    y = F.conv2d(_copies(grids, copies), weight, None, 1, padding, 1, wide)
    y = y.view(B, 2, 2, wide, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(B, wide, 2 * height, 2 * width)[:, :, :H, :W].contiguous()


def _copies(x: Tensor, count: int) -> Tensor:
    """(B, C, H, W) -> (B, count·C, H, W)."""
    return x if count == 1 else x.repeat(1, count, 1, 1)
