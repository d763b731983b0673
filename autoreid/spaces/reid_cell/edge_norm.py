"""Batch normalisation of several edges' maps in one call, with the mixing weights as scales."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm, normalise_together
from autoreid.layers.pointwise import rows_of

#: Selects all edges; a slice of length 1 selects one.
ALL = slice(None)

_MOMENTUM, _EPSILON = 0.1, 1e-5


class EdgeNorm(nn.BatchNorm2d):
    """Batch normalisation of the maps of E edges, (B, E·C, H, W).

    The mixing weights can be the scale: multiplying by them then costs nothing, and their gradients are computed with
    the norm's own. `num_batches_tracked` is not incremented, because the momentum is fixed.

    Attributes:
        shares_statistics: whether batch statistics are those of the batch over all ranks.
    """

    def __init__(self, channels: int, edges: int, affine: bool) -> None:
        super().__init__(edges * channels, _EPSILON, _MOMENTUM, affine)
        self.channels, self.edges = channels, edges
        self.shares_statistics = False

    def of(self, x: Tensor, scale: Tensor | None = None, edges: slice = ALL) -> Norm:
        """Return the arguments of `normalise_together` for the map of this norm.

        Args:
            x: (B, E·C, H, W), with the selected edges only.
            scale: (E·C,), or None for the learned scale.
            edges: the edges of x; only their statistics are used and updated.
        """

        def chosen(values: Tensor | None) -> Tensor | None:
            return None if values is None else rows_of(values, self.edges, edges)

        use_running = self.track_running_stats or not self.training
        return Norm(
            x,
            chosen(self.running_mean) if use_running else None,
            chosen(self.running_var) if use_running else None,
            chosen(self.weight) if scale is None else scale,
            chosen(self.bias),
        )

    def forward(self, x: Tensor, scale: Tensor | None = None, edges: slice = ALL) -> Tensor:
        """Normalise the map (B, E·C, H, W) of this norm alone."""
        return normalise_level([self.of(x, scale, edges)], self.training, self.shares_statistics)[0]


def normalise_level(norms: Sequence[Norm], training: bool, shared: bool) -> list[Tensor]:
    """Normalise maps that do not depend on each other, with the momentum and ε of all norms in a cell.

    Args:
        norms: the maps, and each map's statistics and parameters.
        training: whether to use batch statistics instead of the running ones.
        shared: whether batch statistics are those of all ranks; this takes one collective for all maps.
    """
    return normalise_together(norms, training, _MOMENTUM, _EPSILON, shared)
