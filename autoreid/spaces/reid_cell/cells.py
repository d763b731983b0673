"""Search cells: every edge is a mixture of all candidate operations (DARTS, arXiv 1806.09055, eq. 2).

All edges that leave a node have the same input. The cell is therefore computed node by node, and what the candidates
of these edges have in common is computed once. A level is computed together: first both inputs, then each node.
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
    """The mixing weights of the edges that leave a source: an input of the cell, or a node.

    Attributes:
        shared: weights of the candidates whose map all edges share, (E, K).
        scales: weights of each other candidate, for the channels of its norm, (E·C,).
    """

    shared: Tensor
    scales: dict[str, Tensor]


def count_edges(nodes: int) -> int:
    """Counts the edges of a cell whose nodes take both inputs and all earlier nodes; 14 for 4 nodes."""
    return sum(2 + node for node in range(nodes))


def edges_from(source: int, nodes: int) -> list[int]:
    """Lists the edges that leave a source (0 and 1 are the cell's inputs, then its nodes), one to each later node."""
    return [count_edges(node) + source for node in range(max(0, source - 1), nodes)]


def build_preprocess(in_channels: int, channels: int, halve: bool, affine: bool) -> Candidate:
    """Builds the operation that adapts an input to the cell's channels, and halves it if it precedes a reduction."""
    build = FactorizedReduce if halve else ReluConvNorm
    return build(in_channels, channels, affine)


class SearchCell(nn.Module):
    """A cell of N nodes over two inputs; its output concatenates the nodes (N·C channels).

    Args:
        partial: K. Above 1, only C/K channels go through the candidates, and edges have weights.

    Attributes:
        sources: the edges that leave each source.
        shares_statistics: whether the norms use the statistics of the batch over all ranks.
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
        # No edge leaves the last node.
        self.sources = [edges_from(source, nodes) for source in range(nodes + 1)]
        # The outgoing edges of each source; checkpoints have this name.
        self.fans = nn.ModuleList(
            OutgoingEdges(operations, len(edges), self.mixed, 2 if reduction and source < 2 else 1, parts)
            for source, edges in enumerate(self.sources)
        )
        self.levels = [(0, 1), *((source,) for source in range(2, nodes + 1))]
        picks = list(self._picks())
        self.picked_sizes = [len(places) for places in picks]
        every = [place for places in picks for place in places]
        self.register_buffer("picked", torch.tensor(every, dtype=torch.int64), persistent=False)

    def forward(
        self,
        x0: Tensor,
        x1: Tensor,
        mixing: Tensor | None,
        edge_weights_E: Tensor | None = None,
        columns: Sequence[int] | None = None,
    ) -> Tensor:
        """The outputs of the two previous cells -> (B, N·C, H', W').

        Args:
            x0: output of the cell before the last.
            x1: output of the last cell.
            mixing: (E, O) weights of the candidates.
            edge_weights_E: weights of the edges, with partial channels.
            columns: computes only one candidate on each edge, by its column, or none for NOTHING. Its weight is 1
                without `mixing`.
        """
        by_source: Sequence[_Mixing] = ()
        if mixing is not None and columns is None:
            # The candidates' norms scale by it; only the channels that bypass them are left to weigh.
            by_source = self._by_source(
                mixing if edge_weights_E is None else mixing * edge_weights_E[:, None]
            )
        states = self._preprocess(x0, x1)
        sums: list[Tensor] = []  # for each node, over the edges that have been computed
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
            # Its edges lead to all nodes that are not complete yet.
            open_nodes = slice(-len(added), None)
            sums[open_nodes] = (
                [old + new for old, new in zip(sums[open_nodes], added, strict=True)] if sums else added
            )
        return torch.cat([*states[2:], _node(sums[-1], bypassed, edge_weights_E)], dim=1)

    def outgoing(self, source: int) -> OutgoingEdges:
        """Returns the edges that leave a source."""
        return cast(OutgoingEdges, self.fans[source])

    def _by_source(self, mixing: Tensor) -> list[_Mixing]:
        """The mixing weights (E, O) of the edges that leave each source."""
        picked = mixing.flatten().index_select(0, self.get_buffer("picked"))
        pieces = iter(picked.split(self.picked_sizes))
        found = []
        for source, edges in enumerate(self.sources):
            shared = next(pieces).view(len(edges), -1)
            found.append(_Mixing(shared, {name: next(pieces) for name in self.outgoing(source).weighted}))
        return found

    def _picks(self) -> Iterator[list[int]]:
        """Indices into the flattened mixing weights (E, O): for each source, those of its `_Mixing`, one by one."""
        columns = len(self.operations)
        for source, edges in enumerate(self.sources):
            edges_out = self.outgoing(source)
            yield [
                edge * columns + self.operations.index(name) for edge in edges for name in edges_out.shared
            ]
            for name in edges_out.weighted:
                places = [edge * columns + self.operations.index(name) for edge in edges]
                # One for each channel of the candidate's norm.
                yield [place for place in places for _ in range(self.mixed)]

    def _preprocess(self, *inputs: Tensor) -> list[Tensor]:
        """The cell's inputs, adapted to its channels and resolution."""
        modules = (self.preprocess0, self.preprocess1)
        norms = [module.last(EdgeInputs(x, F.relu(x))) for module, x in zip(modules, inputs, strict=True)]
        return normalise_level(norms, self.training, self.shares_statistics)

    def _part(self, level: Sequence[int], inputs: Sequence[Tensor], bypassed: list[Tensor]) -> list[Tensor]:
        """The channels that go through the candidates; appends the others to `bypassed`."""
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
        """What a level contributes to each later node, with one operation on each edge."""
        by_source = []
        for source, x in zip(level, inputs, strict=True):
            edges = self.sources[source]
            weights = None if mixing is None else [mixing[edge, columns[edge]] for edge in edges]
            by_source.append(self.outgoing(source).sampled(x, [columns[edge] for edge in edges], weights))
        return [sum(maps[1:], start=maps[0]) for maps in zip(*by_source, strict=True)]

    def _mix(
        self, level: Sequence[int], inputs: Sequence[Tensor], by_source: Sequence[_Mixing]
    ) -> list[Tensor]:
        """What a level contributes to each later node."""
        outgoing = [self.outgoing(source) for source in level]
        mixing = [by_source[source] for source in level]
        rectified = [F.relu(x) for x in inputs]
        halfway = [edges.middles(*of) for edges, *of in zip(outgoing, inputs, rectified, strict=True)]
        middles = self._normalise(halfway)
        every = zip(outgoing, inputs, rectified, middles, mixing, strict=True)
        norms = [
            edges.lasts(x, positive, middle, weights.scales) for edges, x, positive, middle, weights in every
        ]
        lasts = zip(outgoing, inputs, self._normalise(norms), mixing, strict=True)
        totals = [edges.combine(x, last, weights.shared) for edges, x, last, weights in lasts]
        # The sources of a level lead to the same nodes.
        return list(sum(totals[1:], start=totals[0]).unbind(1))

    def _normalise(self, groups: Sequence[Mapping[str, Norm]]) -> list[dict[str, Tensor]]:
        """Computes groups of norms that do not depend on each other, all at once."""
        norms = [norm for group in groups for norm in group.values()]
        normed = iter(normalise_level(norms, self.training, self.shares_statistics))
        return [{name: next(normed) for name in group} for group in groups]


def _node(total: Tensor, bypassed: Sequence[Tensor], edge_weights_E: Tensor | None) -> Tensor:
    """A node's state: the sum of its edges, joined to the channels that bypass their candidates."""
    if edge_weights_E is None:
        return total
    first = count_edges(len(bypassed) - 2)
    return join(total, weighted_sum(bypassed, edge_weights_E[first : first + len(bypassed)]))
