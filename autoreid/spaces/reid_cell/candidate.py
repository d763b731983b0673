"""What candidate operations have in common: maps, and the norms that end them.

A candidate hands its norms over instead of computing them, so that a cell can normalise all maps of one level
together: with batch statistics shared over ranks that is one collective instead of one for each norm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.spaces.reid_cell.edge_norm import ALL, EdgeNorm, normalise_level


class Candidate(nn.Module, ABC):
    """An operation with weights for each of E edges. Its last step is a norm, whose scale is the mixing weight.

    Attributes:
        shares_statistics: whether the norms' statistics are those of the batch over all ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shares_statistics = False

    def middle(self, rectified: Tensor, edges: slice = ALL) -> Norm | None:  # noqa: ARG002
        """The norm halfway, of operations that have one.

        Args:
            rectified: ReLU(x) (B, C, H, W).
            edges: which edges to compute.
        """
        return None

    @abstractmethod
    def last(
        self,
        x: Tensor,
        rectified: Tensor,
        middle: Tensor | None = None,
        scale: Tensor | None = None,
        edges: slice = ALL,
    ) -> Norm:
        """The norm at the end, of a map (B, E·C, H', W').

        Args:
            x: (B, C, H, W).
            rectified: ReLU(x).
            middle: what the norm halfway gave.
            scale: (E·C,) of the norm; None for its own.
            edges: which edges to compute.
        """

    def forward(self, x: Tensor, edges: slice = ALL) -> Tensor:
        """The operation by itself, (B, C, H, W) -> (B, E·C, H', W')."""
        rectified = F.relu(x)
        norm = self.middle(rectified, edges)
        middle = None if norm is None else self._normalise(norm)
        return self._normalise(self.last(x, rectified, middle, edges=edges))

    def _normalise(self, norm: Norm) -> Tensor:
        return normalise_level([norm], self.training, self.shares_statistics)[0]


class Shared(nn.Module, ABC):
    """A candidate without weights: one map (B, C, H', W') is the same on every edge but for the mixing weight.

    Attributes:
        norm: of the map; None where there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm: EdgeNorm | None = None

    @abstractmethod
    def shared_map(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W'), before the norm."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        y = self.shared_map(x)
        return y if self.norm is None else self.norm(y)
