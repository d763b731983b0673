"""Batch normalisation of several edges' maps in one call, whose scale is their mixing weight."""

from __future__ import annotations

from torch import Tensor, nn

from autoreid.distributed import normalise
from autoreid.search.pointwise import rows_of


class EdgeNorm(nn.BatchNorm2d):
    """Batch normalisation over (B, E·C, H, W).

    Multiplying by the mixing weight then costs nothing, and the weight's gradient comes with the norm's own.

    Attributes:
        shares_statistics: whether they are those of the batch over all ranks.
    """

    def __init__(self, channels: int, edges: int, affine: bool) -> None:
        super().__init__(edges * channels, affine=affine)
        self.channels, self.edges = channels, edges
        self.shares_statistics = False

    def forward(self, x: Tensor, scale_E: Tensor | None = None, edges: slice = slice(None)) -> Tensor:
        """(B, E·C, H, W) -> (B, E·C, H, W).

        Args:
            scale_E: (E,) the mixing weights; None for none.
            edges: which of the edges x is of; only their statistics are used and moved.
        """

        def chosen(values: Tensor | None) -> Tensor | None:
            return None if values is None else rows_of(values, self.edges, edges)

        weight = chosen(self.weight) if scale_E is None else scale_E.repeat_interleave(self.channels)
        moves = self.training and self.track_running_stats
        if moves and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        keeps = moves or not self.training
        return normalise(
            x,
            chosen(self.running_mean) if keeps else None,
            chosen(self.running_var) if keeps else None,
            weight,
            chosen(self.bias),
            self.training,
            self.momentum or 0.0,
            self.eps,
            self.shares_statistics,
        )
