"""Partial channel connections and edge normalisation (PC-DARTS, arXiv 1907.05737, sections 3.2 and 3.3).

Of an edge's C input channels the first C/K go through the candidates; the others pass by and are concatenated. A
shuffle with K groups then spreads the C/K over the next edges' inputs. A node weighs its edges by softmax(β), learnt
as alphas are, since which channels the candidates see makes alphas fluctuate.

The node's sum is over edges, and concatenation and shuffle are the same on each: they are done once a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.spaces.space import Choices


def pass_by(x: Tensor, stride: int) -> Tensor:
    """The channels that go round the candidates: as they are, or through a 2×2 max pool of stride 2 (⌈H/2⌉, ⌈W/2⌉)."""
    return x if stride == 1 else F.max_pool2d(x, 2, 2, ceil_mode=True)


def weighted_sum(maps: Sequence[Tensor], weights_E: Tensor) -> Tensor:
    """Of maps alike in shape, with float32 sums of half-precision maps."""
    # Weights of shape (1,) decide the type; and nothing keeps the sum for its backward pass, so that it may move.
    first, *rest = weights_E.split(1)
    total = maps[0] * first
    for x, weight in zip(maps[1:], rest, strict=True):
        total.addcmul_(x, weight)
    return total


def join(mixed: Tensor, passed: Tensor) -> Tensor:
    """(B, C/K, H, W) and (B, C - C/K, H, W) -> (B, C, H, W), concatenated and shuffled with K groups.

    Of output channels p·K + g, g = 0 are the mixed ones.
    """
    joined = torch.cat([mixed, passed], dim=1)
    return F.channel_shuffle(joined, joined.shape[1] // mixed.shape[1])


def edge_choices(kind: str, inputs: tuple[str, ...]) -> dict[str, Choices]:
    """The betas' groups of a kind of cell, one for each node: which of the inputs before it counts.

    Args:
        inputs: names of the cell's two inputs and of its nodes.
    """
    return {
        _group(kind, node): Choices((name,), inputs[: 2 + node], f"{kind}_edges")
        for node, name in enumerate(inputs[2:])
    }


def edge_weights(values: Mapping[str, Tensor], kind: str, nodes: int) -> Tensor:
    """The betas' softmax (1, 2 + node) of all groups of a kind -> (E,), in the order of the edges."""
    return torch.cat([values[_group(kind, node)].flatten() for node in range(nodes)])


def _group(kind: str, node: int) -> str:
    return f"{kind}_node{node}"
