"""The supernet of the `reid_cell` space: search cells in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autoreid.config import Search
from autoreid.layers.heads import BNNeck
from autoreid.layers.recompute import recompute
from autoreid.spaces.reid_cell.cells import SearchCell
from autoreid.spaces.reid_cell.macro import CellPlan, build_stem
from autoreid.spaces.reid_cell.partial_channels import edge_weights


class ReidCellSupernet(nn.Module):
    """All networks of the space at once; the mixing weights come from outside."""

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

    def forward(self, images: Tensor, mixing: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeds images.

        Args:
            images: (B, 3, H, W).
            mixing: for each kind of cell (E, O) weights, or (E,) the columns of the only operations to compute; with
                partial channels (E, O) weights, and (1, 2 + node) of each node's inputs.

        Returns:
            The embedding (B, D) before the neck, and logits (B, identities).
        """
        x0 = x1 = self.stem(images)
        recomputes = self.recomputes and torch.is_grad_enabled()
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            inputs = [x0, x1, mixing[kind]]
            if self.weighs_edges:
                inputs.append(edge_weights(mixing, kind, self.nodes))
            x0, x1 = x1, recompute(cell, *inputs) if recomputes else cell(*inputs)
        embedding = x1.mean(dim=(2, 3))
        return embedding, self.neck(embedding)
