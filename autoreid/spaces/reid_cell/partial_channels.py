"""Partial channel connections and edge normalisation (PC-DARTS, arXiv 1907.05737, sections 3.2 and 3.3).

Of the C input channels of an edge, the first C/K go through the candidates. The others bypass them and are
concatenated. A shuffle with K groups then spreads the C/K channels over the inputs of the next edges. A node weighs its
edges by softmax(β), which is learnt like the alphas: these fluctuate with the channels that the candidates see.

Concatenation and shuffle are equal on all edges of a node, so they are computed once, on the sum over its edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.spaces.space import Choices


def bypass(x: Tensor, stride: int) -> Tensor:
    """Returns the channels that bypass the candidates: x itself, or its 2×2 max pool of stride 2 (⌈H/2⌉, ⌈W/2⌉)."""
    return x if stride == 1 else F.max_pool2d(x, 2, 2, ceil_mode=True)


def weighted_sum(maps: Sequence[Tensor], weights_E: Tensor) -> Tensor:
    """Computes the weighted sum of maps of equal shape; half-precision maps are summed in float32."""
    # Weights of shape (1,) determine the dtype. The sum may be updated in place: no backward pass needs it.
    first, *rest = weights_E.split(1)
    total = maps[0] * first
    for x, weight in zip(maps[1:], rest, strict=True):
        total.addcmul_(x, weight)
    return total


def join(mixed: Tensor, passed: Tensor) -> Tensor:
    """Concatenates (B, C/K, H, W) and (B, C - C/K, H, W) to (B, C, H, W), shuffled with K groups.

    Of the output channels p·K + g, those with g = 0 are the mixed ones.
    """
    joined = torch.cat([mixed, passed], dim=1)
    return F.channel_shuffle(joined, joined.shape[1] // mixed.shape[1])


def edge_choices(kind: str, inputs: tuple[str, ...]) -> dict[str, Choices]:
    """Returns the groups of the betas of a kind of cell, one for each node: which of its inputs counts.

    Args:
        inputs: names of the cell's two inputs and of its nodes.
    """
    return {
        _group(kind, node): Choices((name,), inputs[: 2 + node], f"{kind}_edges")
        for node, name in enumerate(inputs[2:])
    }


def edge_weights(values: Mapping[str, Tensor], kind: str, nodes: int) -> Tensor:
    """Concatenates the softmax (1, 2 + node) of all betas of a kind of cell to (E,), in the order of the edges."""
    return torch.cat([values[_group(kind, node)].flatten() for node in range(nodes)])


def _group(kind: str, node: int) -> str:
    return f"{kind}_node{node}"
