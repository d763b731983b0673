"""Depthwise separable convolutions of several edges at once, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.layers import cpu
from autoreid.layers.pointwise import pointwise
from autoreid.layers.recompute import RecomputedFunction, keep_inputs


def separable(
    x: Tensor, depthwise_weight: Tensor, weight: Tensor, stride: int, dilation: int, recompute: bool
) -> Tensor:
    """Compute a depthwise convolution followed by a 1×1 convolution, both for each of E edges.

    Args:
        x: (B, C, H, W), shared by all edges, or (B, E·C, H, W).
        depthwise_weight: (E·C, 1, k, k).
        weight: (E·C, C, 1, 1), of the 1×1 convolution.
        recompute: whether the backward pass recomputes the output of the depthwise convolution instead of saving it.

    Returns:
        (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).
    """
    shared_input = x.shape[1] < len(weight)
    if shared_input and depthwise_weight.shape[2] == 3 and not cpu.uses_cpu_form(x):
        return dense(x, depthwise_weight, weight, stride, dilation)
    function = Separable(stride, dilation)
    inputs = (x, depthwise_weight, weight)
    return keep_inputs(function, *inputs) if recompute else function.compute(*inputs)


def dense(x: Tensor, depthwise_weight: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """Compute `separable` of an input that all edges share as one convolution with a dense 3×3 weight.

    Its weight is the product of both weights. So x is read once, and there is no map between the two convolutions.
    This takes nine times the multiplications: faster on a GPU, where memory is the limit, and slower on a CPU.
    """
    channels = x.shape[1]
    by_edge = weight.view(-1, channels, channels, 1, 1) * depthwise_weight.view(-1, 1, channels, 3, 3)
    return F.conv2d(x, by_edge.flatten(0, 1), None, stride, dilation, dilation)


class Separable(RecomputedFunction):
    """`separable` of x and both weights. The backward pass recomputes the depthwise convolution, but not the 1×1."""

    def __init__(self, stride: int, dilation: int) -> None:
        self.stride, self.dilation = stride, dilation

    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the output, (B, E·C, H', W')."""
        x, depthwise_weight, weight = inputs
        y = depthwise(x, depthwise_weight, self.stride, self.dilation)
        return pointwise(y, weight, groups=len(weight) // weight.shape[1])

    def gradients(
        self,
        gradient: Tensor,
        kept: tuple[Tensor, ...],  # noqa: ARG002
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and both weights, None for those that need none."""
        x, depthwise_weight, weight = inputs
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (x, depthwise_weight)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with torch.set_grad_enabled(bool(wanted)):
            y = depthwise(leaves[0], leaves[1], self.stride, self.dilation)
        groups, channels = len(weight) // weight.shape[1], weight.shape[1]
        # One matrix per edge: maps are (B, E, C, pixels), weights (E, C, C).
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
    """Compute a depthwise convolution with "same" padding, of one copy of x for each edge.

    Args:
        x: (B, C, H, W), shared by all edges, or (B, E·C, H, W).
        weight: (E·C, 1, k, k).
        stride: 1 or 2.
        dilation: 1 or 2.
    """
    wide, padding = weight.shape[0], (weight.shape[2] - 1) // 2
    copies = wide // x.shape[1]
    if dilation == 2 and stride == 2:
        # Only every other row and column is read: an ordinary convolution of those.
        return F.conv2d(_repeat_channels(x[:, :, ::2, ::2], copies), weight, None, 1, padding, 1, wide)
    if dilation == 2 and cpu.uses_cpu_form(x):
        return cpu.dilated_depthwise(x, weight)
    return F.conv2d(_repeat_channels(x, copies), weight, None, stride, dilation * padding, dilation, wide)


def _repeat_channels(x: Tensor, count: int) -> Tensor:
    """Repeat (B, C, H, W) to (B, count·C, H, W)."""
    return x if count == 1 else x.repeat(1, count, 1, 1)
