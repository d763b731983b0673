"""Search cells: every edge a mixture of all candidate operations (DARTS, arXiv 1806.09055, eq. 2).

All edges that leave a node see the same input, so the cell is computed node by node: what the candidates of its
edges have in common is done once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.search.operations import FactorizedReduce, Shared, build_operation, relu_conv_norm
from autoreid.search.partial_channels import join, pass_by, weighted_sum


def count_edges(nodes: int) -> int:
    """Edges of a cell in which each node is fed by both inputs and all earlier nodes; 14 for 4 nodes."""
    return sum(2 + node for node in range(nodes))


def edges_from(source: int, nodes: int) -> list[int]:
    """The edges that leave a source (0 and 1 are the cell's inputs, then its nodes), one for each later node."""
    return [count_edges(node) + source for node in range(max(0, source - 1), nodes)]


def build_preprocess(in_channels: int, channels: int, halve: bool, affine: bool) -> nn.Module:
    """Brings a cell's input to its channels, and to half the resolution if it is from before a reduction."""
    build = FactorizedReduce if halve else relu_conv_norm
    return build(in_channels, channels, affine)


class FanOut(nn.Module):
    """All edges that leave one source: what each of them adds to its node."""

    def __init__(self, operations: Sequence[str], edges: int, channels: int, stride: int, parts: int) -> None:
        super().__init__()
        self.edges, self.stride = edges, stride
        self.operations = tuple(operations)
        # `none` takes a share of the weight and adds nothing.
        self.candidates = nn.ModuleDict(
            {
                name: build_operation(name, channels, stride, affine=False, parts=parts, edges=edges)
                for name in operations
                if name != "none"
            }
        )

    def forward(self, x: Tensor, mixing: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> for each edge (B, C, ⌈H/stride⌉, ⌈W/stride⌉).

        Args:
            mixing: (E, O) weights, or (E,) the columns of the only operations to compute.
        """
        if mixing.dim() == 1:
            return self._chosen(x, [self.operations[column] for column in mixing.tolist()])
        rectified = F.relu(x)
        total: Tensor | None = None
        shared: list[tuple[Tensor, Tensor]] = []
        for name, candidate in self.candidates.items():
            weights_E = mixing[:, self.operations.index(name)]
            if isinstance(candidate, Shared):
                shared.append((candidate(x)[:, None], weights_E.view(1, -1, 1, 1, 1)))
                continue
            added = candidate(x, weights_E, rectified=rectified)
            # In place: nothing keeps the sum for its backward pass.
            total = added if total is None else total.add_(added)
        sums = None if total is None else total.unflatten(1, (self.edges, -1))
        for output, weights in shared:
            sums = output * weights if sums is None else torch.addcmul(sums, output, weights)
        if sums is None:
            raise ValueError("no operation beside none")
        return list(sums.unbind(1))

    def _chosen(self, x: Tensor, names: Sequence[str]) -> list[Tensor]:
        """One operation for each edge; those without weights are computed once for all that chose them."""
        outputs: list[Tensor] = []
        shared: dict[str, Tensor] = {}
        for edge, name in enumerate(names):
            if name == "none":
                outputs.append(torch.zeros_like(x[:, :, :: self.stride, :: self.stride]))
            elif isinstance(self.candidates[name], Shared):
                if name not in shared:
                    shared[name] = self.candidates[name](x)
                outputs.append(shared[name])
            else:
                outputs.append(self.candidates[name](x, None, slice(edge, edge + 1)))
        return outputs

    def weights_of(self, name: str, edge: int, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One edge's share of an operation's entries in a state, by the names that the operation alone has for them.

        Args:
            prefix: of this module's entries in the state.
        """
        before = f"{prefix}candidates.{name}."
        entries = {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}
        if isinstance(self.candidates[name], Shared):
            return entries
        return {
            key: value.unflatten(0, (self.edges, -1))[edge] if value.dim() else value
            for key, value in entries.items()
        }


class SearchCell(nn.Module):
    """A cell of N nodes over two inputs; its output concatenates the nodes (N·C channels).

    Args:
        partial: K; only C/K channels go through the candidates, and edges have weights, if it is above 1.
    """

    def __init__(
        self,
        operations: Sequence[str],
        nodes: int,
        parts: int,
        in_channels: tuple[int, int],
        channels: int,
        reduction: bool,
        after_reduction: bool,
        partial: int = 1,
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.mixed, self.passed = channels // partial, channels - channels // partial
        older, newer = in_channels
        self.preprocess0 = build_preprocess(older, channels, after_reduction, affine=False)
        self.preprocess1 = build_preprocess(newer, channels, False, affine=False)
        # The last node feeds no other.
        self.sources = [edges_from(source, nodes) for source in range(nodes + 1)]
        self.fans = nn.ModuleList(
            FanOut(operations, len(edges), self.mixed, 2 if reduction and source < 2 else 1, parts)
            for source, edges in enumerate(self.sources)
        )

    def forward(self, x0: Tensor, x1: Tensor, mixing: Tensor, edge_weights_E: Tensor | None = None) -> Tensor:
        """The outputs of the cell before the last and of the last -> (B, N·C, H', W').

        Args:
            mixing: (E, O) weights or, without edge weights, (E,) columns.
            edge_weights_E: of edges that take a part of the channels.
        """
        if edge_weights_E is not None:
            # The candidates' norms scale by it; only the channels that pass by are left to weigh.
            mixing = mixing * edge_weights_E[:, None]
        arriving: list[list[Tensor]] = [[] for _ in range(self.nodes)]
        passing: list[Tensor] = []
        states = [self.preprocess0(x0), self.preprocess1(x1)]
        for source, (fan, edges) in enumerate(zip(self.fans, self.sources, strict=True)):
            if source >= 2:
                states.append(_node(arriving[source - 2], passing, edge_weights_E))
            x = states[source]
            if edge_weights_E is not None:
                x, rest = x.split([self.mixed, self.passed], dim=1)
                passing.append(pass_by(rest, cast(FanOut, fan).stride))
            fed = arriving[max(0, source - 1) :]
            for node, added in zip(fed, fan(x, mixing[edges]), strict=True):
                node.append(added)
        return torch.cat([*states[2:], _node(arriving[-1], passing, edge_weights_E)], dim=1)


def _node(arrived: Sequence[Tensor], passing: Sequence[Tensor], edge_weights_E: Tensor | None) -> Tensor:
    """The sum of what the candidates of all its edges added, joined to that of the channels that pass them by."""
    total: Tensor = sum(arrived[1:], start=arrived[0])
    if edge_weights_E is None:
        return total
    first = count_edges(len(passing) - 2)
    return join(total, weighted_sum(passing, edge_weights_E[first : first + len(passing)]))
