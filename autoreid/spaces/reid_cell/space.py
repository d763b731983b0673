"""The `reid_cell` space: DARTS cells with a part-aware operation (Auto-ReID, arXiv 1903.09776)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor

from autoreid.config import Search
from autoreid.errors import DataError
from autoreid.spaces.reid_cell.cells import SearchCell, count_edges
from autoreid.spaces.reid_cell.derived import DerivedNetwork
from autoreid.spaces.reid_cell.genotype import Cell, CellGenotype, Edge, count_skips, random_genotype
from autoreid.spaces.reid_cell.macro import CellPlan, plan_cells
from autoreid.spaces.reid_cell.partial_channels import edge_choices, edge_weights
from autoreid.spaces.reid_cell.supernet import ReidCellSupernet
from autoreid.spaces.space import NOTHING, Choices, Sample, Space

_KINDS = ("normal", "reduce")
#: The names of the candidates' weights in a supernet's state dict.
_CANDIDATE = re.compile(r"cells\.\d+\.fans\.\d+\.candidates\.")


class ReidCellSpace(Space):
    """The operations on the edges of a normal and a reduction cell, and the supernet of these cells."""

    network_type = DerivedNetwork

    def __init__(self, search: Search) -> None:
        super().__init__(search)
        self.settings = search.reid_cell

    def choices(self) -> dict[str, Choices]:
        """Return a group for each kind of cell, with a row for each edge, such as "node2_from_c_k-1".

        All cells of a kind share their alphas. With partial channels, each node has another group, whose columns are
        its inputs.
        """
        inputs = ("c_k-2", "c_k-1", *(f"node{node}" for node in range(self.settings.nodes)))
        edges = tuple(
            f"node{node}_from_{inputs[source]}"
            for node in range(self.settings.nodes)
            for source in range(2 + node)
        )
        operations = self.settings.operations
        choices = {kind: Choices(edges, operations, never_chosen=("none",)) for kind in _KINDS}
        if self.settings.partial_channels > 1:
            for kind in _KINDS:
                choices |= edge_choices(kind, inputs)
        return choices

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Return the operations that dominate when a search collapses (DARTS+, arXiv 1909.06035)."""
        return {"skip_share": ("skip_connect",), "none_share": ("none",)}

    def build_supernet(self, num_identities: int) -> ReidCellSupernet:
        """Build the supernet, with random weights from torch's generator."""
        return ReidCellSupernet(self.search, self._plans(), num_identities)

    def genotype(self, probabilities: Mapping[str, Tensor]) -> CellGenotype:
        """Read the most probable operation other than `none` on each edge, and the two strongest edges of each node.

        The strength of an edge is the probability of its operation, times the weight of the edge with partial channels.
        The first one wins a tie.

        Args:
            probabilities: (E, O) for each kind of cell; with partial channels, also (1, inputs) for each node.
        """
        cells = {}
        for kind in _KINDS:
            weights = [1.0] * len(probabilities[kind])
            if self.settings.partial_channels > 1:
                weights = edge_weights(probabilities, kind, self.settings.nodes).tolist()
            cells[kind] = self._read_cell(probabilities[kind].tolist(), weights)
        return CellGenotype(normal=cells["normal"], reduce=cells["reduce"])

    def _read_cell(self, probabilities_EO: list[list[float]], weights_E: list[float]) -> Cell:
        nodes: list[tuple[Edge, Edge]] = []
        edges = zip(probabilities_EO, weights_E, strict=True)
        for node in range(self.settings.nodes):
            best: list[tuple[float, Edge]] = []
            for source, (row, weight) in enumerate(islice(edges, 2 + node)):
                choices = [
                    pair for pair in zip(row, self.settings.operations, strict=True) if pair[1] != "none"
                ]
                probability, operation = max(choices, key=lambda choice: choice[0])
                best.append((probability * weight, Edge(operation, source)))
            best.sort(key=lambda candidate: -candidate[0])
            nodes.append((best[0][1], best[1][1]))
        return tuple(nodes)

    def random_genotype(self, rng: np.random.Generator) -> CellGenotype:
        """Sample two different inputs for each node, and any operation of the search but `none` for each edge."""
        return random_genotype(rng, self.settings.nodes, self.settings.operations)

    def path(self, genotype: CellGenotype) -> Sample:
        """Return the columns of the operations on the chosen edges, and NOTHING for all other edges."""
        found = {}
        for kind, cell in genotype.cells():
            columns = [NOTHING] * count_edges(len(cell))
            for node, edges in enumerate(cell):
                for operation, source in edges:
                    columns[count_edges(node) + source] = self.settings.operations.index(operation)
            found[kind] = columns
        return found

    def mutated(self, genotype: CellGenotype, rng: np.random.Generator) -> CellGenotype:
        """Return a genotype in which one random edge has another operation or another input."""
        cells = {kind: [list(edges) for edges in cell] for kind, cell in genotype.cells()}
        cell = cells[_KINDS[int(rng.integers(2))]]
        node, place = int(rng.integers(len(cell))), int(rng.integers(2))
        edge, other = cell[node][place], cell[node][1 - place]
        operations = [name for name in self.settings.operations if name not in ("none", edge.operation)]
        sources = [source for source in range(2 + node) if source not in (edge.source, other.source)]
        if operations and (not sources or rng.random() < 0.5):
            cell[node][place] = Edge(operations[int(rng.integers(len(operations)))], edge.source)
        elif sources:
            cell[node][place] = Edge(edge.operation, sources[int(rng.integers(len(sources)))])
        cell[node].sort(key=lambda one: one.source)
        normal, reduce = (tuple((first, second) for first, second in cells[kind]) for kind in _KINDS)
        return CellGenotype(normal=normal, reduce=reduce)

    def has_collapsed(self, genotype: CellGenotype) -> bool:
        """Return whether the normal cell has at least `stop_at_skips` skip connections (DARTS+ stops at two)."""
        limit = self.settings.stop_at_skips
        return limit is not None and count_skips(genotype.normal) >= limit

    def inherited(self, weights: Mapping[str, Tensor], genotype: CellGenotype) -> dict[str, Tensor]:
        """Select the weights of the chosen operations, and all weights that belong to no candidate.

        Raises:
            DataError: the search used partial channels, so the candidates have too few channels.
        """
        if self.settings.partial_channels > 1:
            raise DataError(
                f"search.reid_cell.partial_channels of the search is {self.settings.partial_channels}, so its "
                f"operations have fewer channels than the network's; use other weights or none"
            )
        with torch.device("meta"):  # Only its structure is needed.
            supernet = self.build_supernet(1)
        found = {name: value for name, value in weights.items() if _CANDIDATE.match(name) is None}
        for index, plan in enumerate(self._plans()):
            edges = [(node, edge) for node, pair in enumerate(getattr(genotype, plan.kind)) for edge in pair]
            for place, (node, (operation, source)) in enumerate(edges):
                outgoing = cast(SearchCell, supernet.cells[index]).outgoing(source)
                first = max(0, source - 1)
                if operation not in outgoing.candidates:
                    continue
                prefix = f"cells.{index}.fans.{source}."
                chosen = outgoing.weights_of(operation, node - first, prefix, weights)
                found |= {f"cells.{index}.edges.{place}.{name}": value for name, value in chosen.items()}
        return found

    def _plans(self) -> list[CellPlan]:
        nodes = {"normal": self.settings.nodes, "reduce": self.settings.nodes}
        return plan_cells(self.settings.channels, self.settings.cells_per_stage, nodes)
