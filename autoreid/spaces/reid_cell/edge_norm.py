"""Batch normalisation of several edges' maps in one call, whose scale is their mixing weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm, normalise_together
from autoreid.layers.pointwise import rows_of

#: All edges; a slice of one chooses it.
ALL = slice(None)

_MOMENTUM, _EPSILON = 0.1, 1e-5


class EdgeNorm(nn.BatchNorm2d):
    """Batch normalisation over (B, E·C, H, W).

    Multiplying by the mixing weight then costs nothing, and the weight's gradient comes with the norm's own. The
    number of batches is not counted: with a fixed momentum nothing asks for it.

    Attributes:
        shares_statistics: whether they are those of the batch over all ranks.
    """

    def __init__(self, channels: int, edges: int, affine: bool) -> None:
        super().__init__(edges * channels, _EPSILON, _MOMENTUM, affine)
        self.channels, self.edges = channels, edges
        self.shares_statistics = False

    def of(self, x: Tensor, scale: Tensor | None = None, edges: slice = ALL) -> Norm:
        """What is to be normalised and with which statistics, for `normalise_together`.

        Args:
            x: (B, E·C, H, W).
            scale: (E·C,), in place of the learned scale; None for that.
            edges: which of the edges x belongs to; only their statistics are used and updated.
        """

        def chosen(values: Tensor | None) -> Tensor | None:
            return None if values is None else rows_of(values, self.edges, edges)

        uses_running = self.track_running_stats or not self.training
        return Norm(
            x,
            chosen(self.running_mean) if uses_running else None,
            chosen(self.running_var) if uses_running else None,
            chosen(self.weight) if scale is None else scale,
            chosen(self.bias),
        )

    def forward(self, x: Tensor, scale: Tensor | None = None, edges: slice = ALL) -> Tensor:
        """(B, E·C, H, W) -> (B, E·C, H, W), normalised by itself."""
        return normalise_level([self.of(x, scale, edges)], self.training, self.shares_statistics)[0]


def normalise_level(norms: Sequence[Norm], training: bool, shared: bool) -> list[Tensor]:
    """Normalises maps that do not depend on each other, with the momentum and ε that all norms of a cell have.

    Args:
        training: whether by batch statistics.
        shared: whether these are of all ranks, which then takes one collective for all maps.
    """
    return normalise_together(norms, training, _MOMENTUM, _EPSILON, shared)
