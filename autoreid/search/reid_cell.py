"""The `reid_cell` space: DARTS cells with a part-aware operation (Auto-ReID, arXiv 1903.09776)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from autoreid.config import Search
from autoreid.models.heads import BNNeck
from autoreid.search.cells import SearchCell, count_edges
from autoreid.search.genotype import Cell, CellGenotype, Edge
from autoreid.search.macro import build_stem, plan_cells


class ReidCellSpace:
    """What can be chosen (alphas of a normal and a reduction cell), and the supernet that mixes it."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def alpha_shapes(self) -> dict[str, tuple[int, int]]:
        """(E, O) for each kind of cell; all cells of a kind share their alphas."""
        shape = (count_edges(self.search.nodes), len(self.search.operations))
        return {"normal": shape, "reduce": shape}

    def build_supernet(self, num_identities: int) -> ReidCellSupernet:
        """The supernet, with fresh weights from torch's generator."""
        return ReidCellSupernet(self.search, num_identities)

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

    def choice_labels(self) -> dict[str, list[str]]:
        """A name for each row of the alphas, such as "node2_from_c_k-1", for plots."""
        inputs = ["c_k-2", "c_k-1", *(f"node{node}" for node in range(self.search.nodes))]
        labels = [
            f"node{node}_from_{inputs[source]}"
            for node in range(self.search.nodes)
            for source in range(2 + node)
        ]
        return {"normal": labels, "reduce": labels}


class ReidCellSupernet(nn.Module):
    """All networks of the space at once; the mixing weights come from outside."""

    def __init__(self, search: Search, num_identities: int) -> None:
        super().__init__()
        nodes = {"normal": search.nodes, "reduce": search.nodes}
        plans = plan_cells(search.channels, search.cells_per_stage, nodes)
        self.stem = build_stem(search.stem, search.channels)
        self.kinds = [plan.kind for plan in plans]
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
            mixing: (E, O) weights for each kind of cell.

        Returns:
            The embedding (B, D) before the neck, and logits (B, identities).
        """
        x0 = x1 = self.stem(images)
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            x0, x1 = x1, cell(x0, x1, mixing[kind])
        embedding = x1.mean(dim=(2, 3))
        return embedding, self.neck(embedding)
