"""Weighted sums of maps that all edges share: one sum for each edge, as one matrix product per image."""

from __future__ import annotations

import torch
from torch import Tensor

from autoreid.layers.recompute import RecomputedFunction


class SharedMixture(RecomputedFunction):
    """The E weighted sums of K maps. The stacked maps are not saved for the backward pass.

    Inputs are the weights (E, K) and K maps (B, C, H, W). The output is (B, E, C·H·W).
    """

    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the sums, (B, E, C·H·W)."""
        weights, *maps = inputs
        stacked = _stack(maps)
        return torch.bmm(weights.to(stacked.dtype).expand(stacked.shape[0], -1, -1), stacked)

    def gradients(
        self,
        gradient: Tensor,
        kept: tuple[Tensor, ...],  # noqa: ARG002
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the weights and of each map, None for those that need none."""
        weights, *maps = inputs
        of_weights = None
        of_maps: list[Tensor | None] = [None] * len(maps)
        if weights.requires_grad:
            stacked = _stack(maps).to(gradient.dtype)
            of_weights = torch.bmm(gradient, stacked.transpose(1, 2)).sum(0).to(weights.dtype)
        if any(x.requires_grad for x in maps):
            columns = weights.t().to(gradient.dtype).expand(gradient.shape[0], -1, -1)
            found = torch.bmm(columns, gradient).unbind(1)
            of_maps = [one.view_as(x).to(x.dtype) for one, x in zip(found, maps, strict=True)]
        return of_weights, *of_maps


def _stack(maps: list[Tensor]) -> Tensor:
    """Stack K maps (B, C, H, W) to (B, K, C·H·W)."""
    return torch.stack([x.flatten(1) for x in maps], dim=1)
