"""The `reid_cell` space: DARTS cells with a part-aware operation (Auto-ReID, arXiv 1903.09776)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from autoreid.config import Search
from autoreid.models.heads import BNNeck
from autoreid.search.cells import FanOut, SearchCell
from autoreid.search.collapse import count_skips
from autoreid.search.genotype import Cell, CellGenotype, Edge
from autoreid.search.macro import CellPlan, build_stem, plan_cells
from autoreid.search.recompute import recompute
from autoreid.search.space import Choices

#: A candidate's entries among a supernet's weights.
_CANDIDATE = re.compile(r"cells\.\d+\.fans\.\d+\.candidates\.")


class ReidCellSpace:
    """What can be chosen (alphas of a normal and a reduction cell), and the supernet that mixes it."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def choices(self) -> dict[str, Choices]:
        """A row for each edge, such as "node2_from_c_k-1"; all cells of a kind share their alphas."""
        inputs = ["c_k-2", "c_k-1", *(f"node{node}" for node in range(self.search.nodes))]
        edges = tuple(
            f"node{node}_from_{inputs[source]}"
            for node in range(self.search.nodes)
            for source in range(2 + node)
        )
        return {kind: Choices(edges, self.search.operations) for kind in ("normal", "reduce")}

    def watched(self) -> dict[str, tuple[str, ...]]:
        """What a search that collapses puts its weight on (DARTS+, arXiv 1909.06035)."""
        return {"skip_share": ("skip_connect",), "none_share": ("none",)}

    def build_supernet(self, num_identities: int) -> ReidCellSupernet:
        """The supernet, with fresh weights from torch's generator."""
        return ReidCellSupernet(self.search, self._plans(), num_identities)

    def genotype(self, probabilities: Mapping[str, Tensor]) -> CellGenotype:
        """Reads out the strongest operations: on each edge the best but `none`, on each node its two best edges.

        Args:
            probabilities: (E, O) per kind of cell; equal ones are ranked by position.
        """
        cells = {kind: self._read_cell(values.tolist()) for kind, values in probabilities.items()}
        return CellGenotype(normal=cells["normal"], reduce=cells["reduce"])

    def _read_cell(self, probabilities_EO: list[list[float]]) -> Cell:
        nodes: list[tuple[Edge, Edge]] = []
        first = 0
        for node in range(self.search.nodes):
            best: list[tuple[float, Edge]] = []
            for source, row in enumerate(probabilities_EO[first : first + 2 + node]):
                choices = [
                    pair for pair in zip(row, self.search.operations, strict=True) if pair[1] != "none"
                ]
                probability, operation = max(choices, key=lambda choice: choice[0])
                best.append((probability, Edge(operation, source)))
            best.sort(key=lambda candidate: -candidate[0])
            nodes.append((best[0][1], best[1][1]))
            first += 2 + node
        return tuple(nodes)

    def has_collapsed(self, genotype: CellGenotype) -> bool:
        """Whether the normal cell has as many skips as the config allows (DARTS+ stops at two)."""
        limit = self.search.stop_at_skips
        return limit is not None and count_skips(genotype.normal) >= limit

    def inherited(self, weights: Mapping[str, Tensor], genotype: CellGenotype) -> dict[str, Tensor]:
        """The chosen operations' entries in each cell, and all that stands on no edge."""
        with torch.device("meta"):  # for its structure alone
            supernet = self.build_supernet(1)
        found = {name: value for name, value in weights.items() if _CANDIDATE.match(name) is None}
        for index, plan in enumerate(self._plans()):
            edges = [(node, edge) for node, pair in enumerate(getattr(genotype, plan.kind)) for edge in pair]
            for place, (node, (operation, source)) in enumerate(edges):
                fan = cast(FanOut, cast(SearchCell, supernet.cells[index]).fans[source])
                first = max(0, source - 1)
                if operation not in fan.candidates:
                    continue
                prefix = f"cells.{index}.fans.{source}."
                chosen = fan.weights_of(operation, node - first, prefix, weights)
                found |= {f"cells.{index}.edges.{place}.{name}": value for name, value in chosen.items()}
        return found

    def _plans(self) -> list[CellPlan]:
        nodes = {"normal": self.search.nodes, "reduce": self.search.nodes}
        return plan_cells(self.search.channels, self.search.cells_per_stage, nodes)


class ReidCellSupernet(nn.Module):
    """All networks of the space at once; the mixing weights come from outside."""

    def __init__(self, search: Search, plans: Sequence[CellPlan], num_identities: int) -> None:
        super().__init__()
        self.stem = build_stem(search.stem, search.channels)
        self.kinds = [plan.kind for plan in plans]
        self.recomputes = search.activation_checkpointing == "cell"
        self.cells = nn.ModuleList(
            SearchCell(
                search.operations,
                search.nodes,
                search.parts,
                plan.in_channels,
                plan.channels,
                plan.kind == "reduce",
                plan.after_reduction,
            )
            for plan in plans
        )
        self.embedding_size = plans[-1].out_channels
        self.neck = BNNeck(self.embedding_size, num_identities)

    def forward(self, images: Tensor, mixing: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeds images.

        Args:
            images: (B, 3, H, W).
            mixing: for each kind of cell (E, O) weights, or (E,) the columns of the only operations to compute.

        Returns:
            The embedding (B, D) before the neck, and logits (B, identities).
        """
        x0 = x1 = self.stem(images)
        recomputes = self.recomputes and torch.is_grad_enabled()
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            inputs = (x0, x1, mixing[kind])
            x0, x1 = x1, recompute(cell, *inputs) if recomputes else cell(*inputs)
        embedding = x1.mean(dim=(2, 3))
        return embedding, self.neck(embedding)
