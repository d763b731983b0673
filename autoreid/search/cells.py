"""Search cells: every edge a mixture of all candidate operations (DARTS, arXiv 1806.09055, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoreid.search.operations import FactorizedReduce, build_operation, relu_conv_norm


def count_edges(nodes: int) -> int:
    """Edges of a cell in which each node is fed by both inputs and all earlier nodes; 14 for 4 nodes."""
    return sum(2 + node for node in range(nodes))


def build_preprocess(in_channels: int, channels: int, halve: bool, affine: bool) -> nn.Module:
    """Brings a cell's input to its channels, and to half the resolution if it is from before a reduction."""
    build = FactorizedReduce if halve else relu_conv_norm
    return build(in_channels, channels, affine)


class MixedOperation(nn.Module):
    """The weighted sum of all candidates on one edge."""

    def __init__(self, operations: Sequence[str], channels: int, stride: int, parts: int) -> None:
        super().__init__()
        self.stride = stride
        # `none` takes a share of the weight and adds nothing.
        self.columns = [column for column, name in enumerate(operations) if name != "none"]
        self.candidates = nn.ModuleList(
            build_operation(operations[column], channels, stride, affine=False, parts=parts)
            for column in self.columns
        )

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉).

        Args:
            mixing: (O,) weights, or () the column of the one operation that counts.
        """
        if mixing.dim() == 0:
            return self._only(x, int(mixing))
        pairs = zip(self.columns, self.candidates, strict=True)
        total: Tensor = sum(mixing[column] * candidate(x) for column, candidate in pairs)
        return total

    def _only(self, x: Tensor, column: int) -> Tensor:
        if column not in self.columns:
            return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])
        output: Tensor = self.candidates[self.columns.index(column)](x)
        return output


class SearchCell(nn.Module):
    """A cell of N nodes over two inputs; its output concatenates the nodes (N·C channels)."""

    def __init__(
        self,
        operations: Sequence[str],
        nodes: int,
        parts: int,
        in_channels: tuple[int, int],
        channels: int,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        self.nodes = nodes
        older, newer = in_channels
        self.preprocess0 = build_preprocess(older, channels, after_reduction, affine=False)
        self.preprocess1 = build_preprocess(newer, channels, False, affine=False)
        self.edges = nn.ModuleList(
            MixedOperation(operations, channels, 2 if reduction and source < 2 else 1, parts)
            for node in range(nodes)
            for source in range(2 + node)
        )

    def forward(self, x0: Tensor, x1: Tensor, mixing: Tensor) -> Tensor:
        """The outputs of the cell before the last and of the last, and mixing weights (E, O) or columns (E,)."""
        states = [self.preprocess0(x0), self.preprocess1(x1)]
        edge = 0
        for _ in range(self.nodes):
            inputs = list(enumerate(states, start=edge))
            edge += len(states)
            node: Tensor = sum(self.edges[e](x, mixing[e]) for e, x in inputs)
            states.append(node)
        return torch.cat(states[2:], dim=1)
