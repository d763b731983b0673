"""Partial channel connections and edge normalisation (PC-DARTS, arXiv 1907.05737, sections 3.2 and 3.3).

Of the C input channels of an edge, the first C/K pass through the candidates. The others bypass them and are
concatenated to the result. A channel shuffle with K groups then mixes both kinds of channels for the next edges. Each
node weights its edges by softmax(β). The betas are learned like the alphas. They make the choice of edges more stable,
because the alphas fluctuate with the channels that the candidates see.

Concatenation and shuffle are the same on all edges of a node, so they are computed once, on the sum of its edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.spaces.space import Choices


def bypass(x: Tensor, stride: int) -> Tensor:
    """Return the output of the bypassing channels: x, or at stride 2 its 2×2 max pool (B, C, ⌈H/2⌉, ⌈W/2⌉)."""
    return x if stride == 1 else F.max_pool2d(x, 2, 2, ceil_mode=True)


def weighted_sum(maps: Sequence[Tensor], weights_E: Tensor) -> Tensor:
    """Compute the weighted sum of maps of equal shape. Maps in half precision are summed in float32."""
    # Weights of shape (1,) determine the dtype. In place, because no backward pass needs the partial sums.
    first, *rest = weights_E.split(1)
    total = maps[0] * first
    for x, weight in zip(maps[1:], rest, strict=True):
        total.addcmul_(x, weight)
    return total


def join(mixed: Tensor, bypassed: Tensor) -> Tensor:
    """Concatenate (B, C/K, H, W) and (B, C - C/K, H, W) to (B, C, H, W), and shuffle the channels with K groups.

    Every K-th output channel, starting with the first, is a mixed one.
    """
    joined = torch.cat([mixed, bypassed], dim=1)
    return F.channel_shuffle(joined, joined.shape[1] // mixed.shape[1])


def edge_choices(kind: str, inputs: tuple[str, ...]) -> dict[str, Choices]:
    """Return the groups of the betas of a kind of cell: for each node, a single row with a column for each input.

    Args:
        kind: "normal" or "reduce".
        inputs: names of the two inputs of the cell and of its nodes.
    """
    return {
        _group(kind, node): Choices((name,), inputs[: 2 + node], f"{kind}_edges")
        for node, name in enumerate(inputs[2:])
    }


def edge_weights(values: Mapping[str, Tensor], kind: str, nodes: int) -> Tensor:
    """Concatenate the edge weights (1, 2 + node) of all nodes of a kind of cell, (E,), in the order of the edges."""
    return torch.cat([values[_group(kind, node)].flatten() for node in range(nodes)])


def _group(kind: str, node: int) -> str:
    return f"{kind}_node{node}"
