"""The fusion of a map with a vector for each body part.

Shape letters: B images, E edges, C channels, M body parts, H rows and W columns of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from autoreid.layers.pooling import pooling_matrix
from autoreid.layers.recompute import RecomputedFunction


class PartFusion(RecomputedFunction):
    """The 1×1 convolution of pixels and part vectors, as matrix products for each image.

    Inputs are x (B, C, H, W), the weights of its half (E·C, C), and the output of the other half for each part,
    (B, E·C, M). The output is (B, E·C, H'·W').
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the output, (B, E·C, H'·W')."""
        x, weight, parts = inputs
        rows = torch.bmm(parts, self._ones(x, parts))
        # In place, because the backward pass of the first product needs only its inputs.
        return rows.baddbmm_(weight.to(rows.dtype).expand(x.shape[0], -1, -1), self._pixels(x).to(rows.dtype))

    def gradients(
        self,
        gradient: Tensor,
        kept: tuple[Tensor, ...],  # noqa: ARG002
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weights and parts, None for those that need none."""
        x, weight, parts = inputs
        of_x = of_weight = of_parts = None
        if weight.requires_grad:
            of_weight = torch.bmm(gradient, self._pixels(x).transpose(1, 2)).sum(0).to(weight.dtype)
        if parts.requires_grad:
            of_parts = self._sum_by_part(gradient, x, parts).to(parts.dtype)
        if x.requires_grad:
            of_x = self._spread(torch.bmm(weight.t().expand(x.shape[0], -1, -1), gradient).to(x.dtype), x)
        return of_x, of_weight, of_parts

    def _sum_by_part(self, gradient: Tensor, x: Tensor, parts: Tensor) -> Tensor:
        """Sum a gradient (B, E·C, H'·W') over the pixels of each part, (B, E·C, M)."""
        batch, count = x.shape[0], parts.shape[2]
        ones = _membership(x, count, self.stride).to(gradient.dtype).t().expand(batch, -1, -1)
        # Contiguous as (E·C, B, M), so that the functions that compute the vectors of the parts need not copy it.
        sums = gradient.new_empty(gradient.shape[1], batch, count).transpose(0, 1)
        return torch.bmm(gradient, ones, out=sums)

    def _pixels(self, x: Tensor) -> Tensor:
        """Flatten the pixels that the stride selects, (B, C, H, W), to (B, C, H'·W')."""
        return x[:, :, :: self.stride, :: self.stride].flatten(2) if self.stride > 1 else x.flatten(2)

    def _ones(self, x: Tensor, parts: Tensor) -> Tensor:
        """Return `_membership` for each image, (B, M, H'·W')."""
        return _membership(x, parts.shape[2], self.stride).expand(x.shape[0], -1, -1)

    def _spread(self, pixels: Tensor, x: Tensor) -> Tensor:
        """Expand (B, C, H'·W') to the size of x, with zeros for the pixels that the stride skips."""
        if self.stride == 1:
            return pixels.view_as(x)
        spread = torch.zeros_like(x)
        strided = spread[:, :, :: self.stride, :: self.stride]
        strided.copy_(pixels.view_as(strided))
        return spread


def part_pooling(x: Tensor, parts: int) -> Tensor:
    """Return the matrix (H·W, M) of each pixel's weight in the mean of each part, as in adaptive average pooling."""
    return _constant(_compute_pooling, x, *x.shape[2:], parts)


def _membership(x: Tensor, parts: int, stride: int) -> Tensor:
    """Return the matrix (M, H'·W') that is 1 where a pixel belongs to a part, and 0 elsewhere."""
    return _constant(_compute_membership, x, *x.shape[2:], parts, stride)


def _compute_pooling(device: torch.device, dtype: torch.dtype, height: int, width: int, parts: int) -> Tensor:
    of_rows = pooling_matrix(parts, height, device, dtype).t() / width
    return of_rows[:, None].expand(-1, width, -1).flatten(0, 1)


def _compute_membership(
    device: torch.device, dtype: torch.dtype, height: int, width: int, parts: int, stride: int
) -> Tensor:
    part_of_row = torch.arange(0, height, stride, device=device) * parts // height
    ones = (part_of_row == torch.arange(parts, device=device)[:, None]).to(dtype)
    return ones[:, :, None].expand(-1, -1, -(-width // stride)).flatten(1)


def _constant(compute: Callable[..., Tensor], x: Tensor, *sizes: int) -> Tensor:
    """Return a constant on the device of x, cached by size; not cached while a compiler or exporter is tracing."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return compute(x.device, x.dtype, *sizes)
    return _cached_constant(compute, x.device, x.dtype, *sizes)


@lru_cache(maxsize=256)
def _cached_constant(
    compute: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, *sizes: int
) -> Tensor:
    with torch.inference_mode(False):  # a tensor created in inference mode cannot be used in training
        return compute(device, dtype, *sizes)
