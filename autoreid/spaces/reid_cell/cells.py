"""Search cells: every edge a mixture of all candidate operations (DARTS, arXiv 1806.09055, eq. 2).

All edges that leave a node see the same input, so the cell is computed node by node: what the candidates of its
edges have in common is done once. A level is what is computed together: both inputs, then each node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.spaces.reid_cell.candidate import Candidate
from autoreid.spaces.reid_cell.edge_norm import normalise_level
from autoreid.spaces.reid_cell.fan_out import FanOut
from autoreid.spaces.reid_cell.operations import FactorizedReduce, ReluConvNorm
from autoreid.spaces.reid_cell.partial_channels import join, pass_by, weighted_sum


class _Mixing(NamedTuple):
    """The mixing weights of the edges that leave a source.

    Attributes:
        shared: (E, K) of the candidates whose map all edges share.
        scales: (E·C,) of each other candidate, for the channels of its norm.
    """

    shared: Tensor
    scales: dict[str, Tensor]


def count_edges(nodes: int) -> int:
    """Edges of a cell in which each node is fed by both inputs and all earlier nodes; 14 for 4 nodes."""
    return sum(2 + node for node in range(nodes))


def edges_from(source: int, nodes: int) -> list[int]:
    """The edges that leave a source (0 and 1 are the cell's inputs, then its nodes), one for each later node."""
    return [count_edges(node) + source for node in range(max(0, source - 1), nodes)]


def build_preprocess(in_channels: int, channels: int, halve: bool, affine: bool) -> Candidate:
    """Brings a cell's input to its channels, and to half the resolution if it is from before a reduction."""
    build = FactorizedReduce if halve else ReluConvNorm
    return build(in_channels, channels, affine)


class SearchCell(nn.Module):
    """A cell of N nodes over two inputs; its output concatenates the nodes (N·C channels).

    Args:
        partial: K; only C/K channels go through the candidates, and edges have weights, if it is above 1.

    Attributes:
        sources: the edges that leave each source.
        shares_statistics: whether the norms' statistics are those of the batch over all ranks.
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
        self.levels = [(0, 1), *((source,) for source in range(2, nodes + 1))]
        picks = list(self._picks())
        self.picked_sizes = [len(places) for places in picks]
        every = [place for places in picks for place in places]
        self.register_buffer("picked", torch.tensor(every, dtype=torch.int64), persistent=False)

    def forward(self, x0: Tensor, x1: Tensor, mixing: Tensor, edge_weights_E: Tensor | None = None) -> Tensor:
        """The outputs of the cell before the last and of the last -> (B, N·C, H', W').

        Args:
            mixing: (E, O) weights or, without edge weights, (E,) columns on the CPU.
            edge_weights_E: of edges that take a part of the channels.
        """
        if edge_weights_E is not None:
            # The candidates' norms scale by it; only the channels that pass by are left to weigh.
            mixing = mixing * edge_weights_E[:, None]
        columns = mixing.tolist() if mixing.dim() == 1 else None
        by_source = [] if columns else self._by_source(mixing)
        states = self._preprocess(x0, x1)
        arrived: list[Tensor] = []  # the sums of what has come in, for each node
        passing: list[Tensor] = []
        for level in self.levels:
            if len(states) == level[0]:
                states.append(_node(arrived[level[0] - 2], passing, edge_weights_E))
            inputs = [states[source] for source in level]
            if edge_weights_E is not None:
                inputs = self._part(level, inputs, passing)
            added = self._sample(level, inputs, columns) if columns else self._mix(level, inputs, by_source)
            # It feeds all nodes that are not complete yet.
            fed = slice(-len(added), None)
            arrived[fed] = (
                [old + new for old, new in zip(arrived[fed], added, strict=True)] if arrived else added
            )
        return torch.cat([*states[2:], _node(arrived[-1], passing, edge_weights_E)], dim=1)

    def fan(self, source: int) -> FanOut:
        """What leaves a source."""
        return cast(FanOut, self.fans[source])

    def _by_source(self, mixing: Tensor) -> list[_Mixing]:
        """The mixing weights (E, O) of the edges that leave each source."""
        picked = mixing.flatten().index_select(0, self.get_buffer("picked"))
        pieces = iter(picked.split(self.picked_sizes))
        found = []
        for source, edges in enumerate(self.sources):
            shared = next(pieces).view(len(edges), -1)
            found.append(_Mixing(shared, {name: next(pieces) for name in self.fan(source).weighted}))
        return found

    def _picks(self) -> Iterator[list[int]]:
        """Places in the flattened mixing weights (E, O): for each source those of its `_Mixing`, piece by piece."""
        columns = len(self.operations)
        for source, edges in enumerate(self.sources):
            fan = self.fan(source)
            yield [edge * columns + self.operations.index(name) for edge in edges for name in fan.shared]
            for name in fan.weighted:
                places = [edge * columns + self.operations.index(name) for edge in edges]
                # One for each channel of the candidate's norm.
                yield [place for place in places for _ in range(self.mixed)]

    def _preprocess(self, *inputs: Tensor) -> list[Tensor]:
        """The cell's inputs, with its channels and resolution."""
        modules = (self.preprocess0, self.preprocess1)
        norms = [module.last(x, F.relu(x)) for module, x in zip(modules, inputs, strict=True)]
        return normalise_level(norms, self.training, self.shares_statistics)

    def _part(self, level: Sequence[int], inputs: Sequence[Tensor], passing: list[Tensor]) -> list[Tensor]:
        """The channels that go through the candidates; appends what the others become to `passing`."""
        split = [x.split([self.mixed, self.passed], dim=1) for x in inputs]
        passing += [
            pass_by(rest, self.fan(source).stride) for source, (_, rest) in zip(level, split, strict=True)
        ]
        return [mixed for mixed, _ in split]

    def _sample(self, level: Sequence[int], inputs: Sequence[Tensor], columns: Sequence[int]) -> list[Tensor]:
        """What a level adds to each node that it feeds, each edge by its one operation."""
        by_source = [
            self.fan(source).sampled(x, [columns[edge] for edge in self.sources[source]])
            for source, x in zip(level, inputs, strict=True)
        ]
        return [sum(maps[1:], start=maps[0]) for maps in zip(*by_source, strict=True)]

    def _mix(
        self, level: Sequence[int], inputs: Sequence[Tensor], by_source: Sequence[_Mixing]
    ) -> list[Tensor]:
        """What a level adds to each node that it feeds."""
        fans = [self.fan(source) for source in level]
        mixing = [by_source[source] for source in level]
        rectified = [F.relu(x) for x in inputs]
        middles = self._normalise([fan.middles(x) for fan, x in zip(fans, rectified, strict=True)])
        every = zip(fans, inputs, rectified, middles, mixing, strict=True)
        norms = [
            fan.lasts(x, positive, middle, weights.scales) for fan, x, positive, middle, weights in every
        ]
        lasts = zip(fans, inputs, self._normalise(norms), mixing, strict=True)
        totals = [fan.combine(x, last, weights.shared) for fan, x, last, weights in lasts]
        # Sources of a level feed the same nodes.
        return list(sum(totals[1:], start=totals[0]).unbind(1))

    def _normalise(self, groups: Sequence[Mapping[str, Norm]]) -> list[dict[str, Tensor]]:
        """Groups of norms that do not depend on each other, all at once."""
        norms = [norm for group in groups for norm in group.values()]
        normed = iter(normalise_level(norms, self.training, self.shares_statistics))
        return [{name: next(normed) for name in group} for group in groups]


def _node(arrived: Tensor, passing: Sequence[Tensor], edge_weights_E: Tensor | None) -> Tensor:
    """What the candidates of all its edges added, joined to the channels that pass them by."""
    if edge_weights_E is None:
        return arrived
    first = count_edges(len(passing) - 2)
    return join(arrived, weighted_sum(passing, edge_weights_E[first : first + len(passing)]))
