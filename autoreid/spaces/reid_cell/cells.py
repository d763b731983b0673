"""Search cells: every edge is a mixture of all candidate operations (DARTS, arXiv 1806.09055, eq. 2).

All outgoing edges of a node have the same input, so a cell is computed source by source, and the candidates on these
edges share as much of the computation as possible. The two inputs of the cell are computed together, as the first
level. Each node is a further level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.spaces.reid_cell.candidate import Candidate, EdgeInputs
from autoreid.spaces.reid_cell.edge_norm import normalise_level
from autoreid.spaces.reid_cell.operations import FactorizedReduce, ReluConvNorm
from autoreid.spaces.reid_cell.outgoing_edges import OutgoingEdges
from autoreid.spaces.reid_cell.partial_channels import bypass, join, weighted_sum


class _Mixing(NamedTuple):
    """The mixing weights of the outgoing edges of a source: an input of the cell, or a node.

    Attributes:
        shared: weights of the K candidates that compute one map for all edges, (E, K).
        scales: weights of each other candidate, expanded to the channels of its norm, (E·C,).
    """

    shared: Tensor
    scales: dict[str, Tensor]


def count_edges(nodes: int) -> int:
    """Return the number of edges from the inputs and nodes of a cell to all later nodes: 14 for 4 nodes."""
    return sum(2 + node for node in range(nodes))


def edges_from(source: int, nodes: int) -> list[int]:
    """Return the indices of the outgoing edges of a source, one to each later node.

    Args:
        source: 0 and 1 are the inputs of the cell, 2 + i is node i.
        nodes: number of nodes in the cell.
    """
    return [count_edges(node) + source for node in range(max(0, source - 1), nodes)]


def build_preprocess(in_channels: int, channels: int, halve: bool, affine: bool) -> Candidate:
    """Build the operation that adapts an input to the channels of the cell, and halves its resolution if `halve`."""
    build = FactorizedReduce if halve else ReluConvNorm
    return build(in_channels, channels, affine)


class SearchCell(nn.Module):
    """A cell with two inputs and N nodes. Its output concatenates the nodes and has N·C channels.

    Args:
        operations: names of the candidates.
        nodes: N.
        parts: number of body parts in the part-aware operation.
        in_channels: channels of the two inputs.
        channels: C.
        reduction: whether the cell halves the resolution.
        after_reduction: whether the first input has twice the resolution of the second one.
        partial: K. If K > 1, only C/K channels pass through the candidates, and edges have weights.

    Attributes:
        sources: indices of the outgoing edges of each source.
        shares_statistics: whether the norms share batch statistics across ranks.
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
        self.nodes, self.shares_statistics = nodes, False
        self.operations = tuple(operations)
        self.mixed, self.bypassing = channels // partial, channels - channels // partial
        older, newer = in_channels
        self.preprocess0 = build_preprocess(older, channels, after_reduction, affine=False)
        self.preprocess1 = build_preprocess(newer, channels, False, affine=False)
        # The last node has no outgoing edges.
        self.sources = [edges_from(source, nodes) for source in range(nodes + 1)]
        # The outgoing edges of each source. The name is that of existing checkpoints.
        self.fans = nn.ModuleList(
            OutgoingEdges(operations, len(edges), self.mixed, 2 if reduction and source < 2 else 1, parts)
            for source, edges in enumerate(self.sources)
        )
        self.levels = [(0, 1), *((source,) for source in range(2, nodes + 1))]
        picks = list(self._picks())
        self.picked_sizes = [len(places) for places in picks]
        indices = [place for places in picks for place in places]
        self.register_buffer("picked", torch.tensor(indices, dtype=torch.int64), persistent=False)

    def forward(
        self,
        x0: Tensor,
        x1: Tensor,
        mixing: Tensor | None,
        edge_weights_E: Tensor | None = None,
        columns: Sequence[int] | None = None,
    ) -> Tensor:
        """Compute the output, (B, N·C, H', W').

        Args:
            x0: output of the cell before the previous one.
            x1: output of the previous cell.
            mixing: weights of the candidates, (E, O).
            edge_weights_E: weights of the edges, with partial channels.
            columns: the column of the only candidate to compute on each edge; NOTHING computes none. The weights are
                those in `mixing`, or 1 without it.
        """
        by_source: Sequence[_Mixing] = ()
        if mixing is not None and columns is None:
            # The norms of the candidates apply the edge weights too. Only bypassing channels are weighted separately.
            by_source = self._by_source(
                mixing if edge_weights_E is None else mixing * edge_weights_E[:, None]
            )
        states = self._preprocess(x0, x1)
        sums: list[Tensor] = []  # for each node, the sum of the edges that have been computed
        bypassed: list[Tensor] = []
        for level in self.levels:
            if len(states) == level[0]:
                states.append(_node(sums[level[0] - 2], bypassed, edge_weights_E))
            inputs = [states[source] for source in level]
            if edge_weights_E is not None:
                inputs = self._part(level, inputs, bypassed)
            added = (
                self._mix(level, inputs, by_source)
                if columns is None
                else self._sample(level, inputs, columns, mixing)
            )
            # The edges of a level lead to all nodes that are not complete yet.
            open_nodes = slice(-len(added), None)
            sums[open_nodes] = (
                [old + new for old, new in zip(sums[open_nodes], added, strict=True)] if sums else added
            )
        return torch.cat([*states[2:], _node(sums[-1], bypassed, edge_weights_E)], dim=1)

    def outgoing(self, source: int) -> OutgoingEdges:
        """Return the outgoing edges of a source."""
        return cast(OutgoingEdges, self.fans[source])

    def _by_source(self, mixing: Tensor) -> list[_Mixing]:
        """Split the mixing weights (E, O) by the source of the edges."""
        picked = mixing.flatten().index_select(0, self.get_buffer("picked"))
        pieces = iter(picked.split(self.picked_sizes))
        found = []
        for source, edges in enumerate(self.sources):
            shared = next(pieces).view(len(edges), -1)
            found.append(_Mixing(shared, {name: next(pieces) for name in self.outgoing(source).weighted}))
        return found

    def _picks(self) -> Iterator[list[int]]:
        """Yield the indices into the flattened mixing weights (E, O) of each tensor in the `_Mixing` of each source."""
        columns = len(self.operations)
        for source, edges in enumerate(self.sources):
            edges_out = self.outgoing(source)
            yield [
                edge * columns + self.operations.index(name) for edge in edges for name in edges_out.shared
            ]
            for name in edges_out.weighted:
                places = [edge * columns + self.operations.index(name) for edge in edges]
                # Repeated for each channel of the candidate's norm.
                yield [place for place in places for _ in range(self.mixed)]

    def _preprocess(self, *inputs: Tensor) -> list[Tensor]:
        """Adapt the inputs to the channels and the resolution of the cell."""
        modules = (self.preprocess0, self.preprocess1)
        norms = [module.last(EdgeInputs(x, F.relu(x))) for module, x in zip(modules, inputs, strict=True)]
        return normalise_level(norms, self.training, self.shares_statistics)

    def _part(self, level: Sequence[int], inputs: Sequence[Tensor], bypassed: list[Tensor]) -> list[Tensor]:
        """Return the channels that pass through the candidates, and append the others to `bypassed`."""
        split = [x.split([self.mixed, self.bypassing], dim=1) for x in inputs]
        bypassed += [
            bypass(rest, self.outgoing(source).stride) for source, (_, rest) in zip(level, split, strict=True)
        ]
        return [mixed for mixed, _ in split]

    def _sample(
        self,
        level: Sequence[int],
        inputs: Sequence[Tensor],
        columns: Sequence[int],
        mixing: Tensor | None,
    ) -> list[Tensor]:
        """Compute what a level adds to each later node, with one candidate on each edge."""
        by_source = []
        for source, x in zip(level, inputs, strict=True):
            edges = self.sources[source]
            weights = None if mixing is None else [mixing[edge, columns[edge]] for edge in edges]
            by_source.append(self.outgoing(source).sampled(x, [columns[edge] for edge in edges], weights))
        return [sum(maps[1:], start=maps[0]) for maps in zip(*by_source, strict=True)]

    def _mix(
        self, level: Sequence[int], inputs: Sequence[Tensor], by_source: Sequence[_Mixing]
    ) -> list[Tensor]:
        """Compute what a level adds to each later node, with a mixture of all candidates on each edge."""
        outgoing = [self.outgoing(source) for source in level]
        mixing = [by_source[source] for source in level]
        rectified = [F.relu(x) for x in inputs]
        norms = [edges.middle_norms(x, y) for edges, x, y in zip(outgoing, inputs, rectified, strict=True)]
        middles = self._normalise(norms)
        norms = [
            edges.last_norms(x, y, middle, weights.scales)
            for edges, x, y, middle, weights in zip(outgoing, inputs, rectified, middles, mixing, strict=True)
        ]
        lasts = self._normalise(norms)
        totals = [
            edges.combine(x, last, weights.shared)
            for edges, x, last, weights in zip(outgoing, inputs, lasts, mixing, strict=True)
        ]
        # The sources of a level lead to the same nodes.
        return list(sum(totals[1:], start=totals[0]).unbind(1))

    def _normalise(self, groups: Sequence[Mapping[str, Norm]]) -> list[dict[str, Tensor]]:
        """Compute several groups of norms at once. They must not depend on each other."""
        norms = [norm for group in groups for norm in group.values()]
        normed = iter(normalise_level(norms, self.training, self.shares_statistics))
        return [{name: next(normed) for name in group} for group in groups]


def _node(total: Tensor, bypassed: Sequence[Tensor], edge_weights_E: Tensor | None) -> Tensor:
    """Return the output of a node: the sum of its edges, joined with the channels that bypass the candidates."""
    if edge_weights_E is None:
        return total
    first = count_edges(len(bypassed) - 2)
    return join(total, weighted_sum(bypassed, edge_weights_E[first : first + len(bypassed)]))
