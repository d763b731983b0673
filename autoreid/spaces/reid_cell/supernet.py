"""The supernet of the `reid_cell` space: a sequence of search cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoreid.config import Search
from autoreid.layers.heads import BNNeck
from autoreid.layers.recompute import recompute
from autoreid.spaces.reid_cell.cells import SearchCell
from autoreid.spaces.reid_cell.macro import CellPlan, build_stem
from autoreid.spaces.reid_cell.partial_channels import edge_weights
from autoreid.spaces.space import Mixing, Sample, Supernet


class ReidCellSupernet(Supernet):
    """The supernet. All cells of a kind share their mixing weights (E, O).

    With partial channels, each node also has weights for its inputs, (1, 2 + node).
    """

    def __init__(self, search: Search, plans: Sequence[CellPlan], num_identities: int) -> None:
        super().__init__()
        section = search.reid_cell
        self.stem = build_stem(section.stem, section.channels)
        self.kinds = [plan.kind for plan in plans]
        self.nodes, self.weighs_edges = section.nodes, section.partial_channels > 1
        self.recomputes = search.activation_checkpointing == "cell"
        self.cells = nn.ModuleList(
            SearchCell(
                section.operations,
                section.nodes,
                section.parts,
                plan.in_channels,
                plan.channels,
                plan.kind == "reduce",
                plan.after_reduction,
                section.partial_channels,
            )
            for plan in plans
        )
        self.embedding_size = plans[-1].out_channels
        self.neck = BNNeck(self.embedding_size, num_identities)

    def forward(
        self, images: Tensor, mixing: Mixing | None = None, sample: Sample | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images, as described in `Supernet`."""
        x0 = x1 = self.stem(images)
        recomputes = self.recomputes and torch.is_grad_enabled()
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            inputs = self._of_kind(kind, mixing, sample)
            x0, x1 = x1, recompute(cell, x0, x1, *inputs) if recomputes else cell(x0, x1, *inputs)
        embedding = x1.mean(dim=(2, 3))
        if self.training:
            return embedding, self.neck(embedding)
        ranked: Tensor = self.neck.norm(embedding)
        return ranked

    def _of_kind(
        self, kind: str, mixing: Mixing | None, sample: Sample | None
    ) -> tuple[Tensor | None, Tensor | None, Sequence[int] | None]:
        """Return the inputs of a kind of cell: its mixing weights, its edge weights, and its sampled columns."""
        columns = None if sample is None else sample[kind]
        if mixing is None:
            return None, None, columns
        of_edges = edge_weights(mixing, kind, self.nodes) if self.weighs_edges else None
        return mixing[kind], of_edges, columns

    def head(self) -> list[nn.Module]:
        """Return the neck."""
        return [self.neck]
