"""The base classes of candidate operations, which compute a feature map for each edge and end with a norm.

A candidate returns its norms without computing them, so that a cell can normalise all maps of a level together. If the
batch statistics are shared across ranks, this takes one collective instead of one per norm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.spaces.reid_cell.edge_norm import ALL, EdgeNorm, normalise_level


class EdgeInputs(NamedTuple):
    """The inputs of a candidate on the outgoing edges of a node.

    Attributes:
        x: output of the node, (B, C, H, W).
        rectified: ReLU(x).
        edges: which of the E edges to compute.
        middle: output of the candidate's middle norm, if it has one.
        scale: mixing weights, the scale of the last norm, (E·C,). With None, the norm uses its learned scale, if any.
    """

    x: Tensor
    rectified: Tensor
    edges: slice = ALL
    middle: Tensor | None = None
    scale: Tensor | None = None


class Candidate(nn.Module, ABC):
    """An operation with separate weights for each of E edges. It ends with a norm that is scaled by the mixing weight.

    Attributes:
        shares_statistics: whether the norms share batch statistics across ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shares_statistics = False

    def middle(self, inputs: EdgeInputs) -> Norm | None:  # noqa: ARG002
        """Return the norm in the middle of the operation, or None."""
        return None

    @abstractmethod
    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm at the end of the operation, of a map (B, E·C, H', W')."""

    def forward(self, x: Tensor, edges: slice = ALL) -> Tensor:
        """Compute the operation outside of a cell, (B, C, H, W) -> (B, E·C, H', W')."""
        inputs = EdgeInputs(x, F.relu(x), edges)
        norm = self.middle(inputs)
        if norm is not None:
            inputs = inputs._replace(middle=self._normalise(norm))
        return self._normalise(self.last(inputs))

    def _normalise(self, norm: Norm) -> Tensor:
        return normalise_level([norm], self.training, self.shares_statistics)[0]

    def state_of_edge(self, state: Mapping[str, Tensor], edge: int, edges: int) -> dict[str, Tensor]:
        """Select the weights of one of E edges, as the state dict of an operation with a single edge."""
        return {
            name: value.unflatten(0, (edges, -1))[edge] if value.dim() else value
            for name, value in state.items()
        }


class PerEdge(Candidate):
    """Make a candidate from ordinary modules, one for each edge, and the norm that is scaled by the mixing weight.

    It computes the edges one after the other. For speed, write the operation as a `Candidate` that computes all edges
    at once.

    Args:
        copies: one module for each edge, (B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉).
        channels: C.
        affine: whether the norm learns a scale and a shift.
    """

    def __init__(self, copies: Sequence[nn.Module], channels: int, affine: bool) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.norm = EdgeNorm(channels, len(copies), affine)

    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm at the end of the operation, of a map (B, E·C, H', W')."""
        maps = [copy(inputs.x) for copy in list(self.copies)[inputs.edges]]
        return self.norm.of(torch.cat(maps, dim=1), inputs.scale, inputs.edges)

    def state_of_edge(self, state: Mapping[str, Tensor], edge: int, edges: int) -> dict[str, Tensor]:
        """Select the weights of one of E edges, as the state dict of an operation with a single edge."""
        norm = {name: value for name, value in state.items() if name.startswith("norm.")}
        copy = {
            name.replace(f"copies.{edge}.", "copies.0.", 1): value
            for name, value in state.items()
            if name.startswith(f"copies.{edge}.")
        }
        return copy | super().state_of_edge(norm, edge, edges)


class Shared(nn.Module, ABC):
    """A candidate without weights. All edges share its map (B, C, H', W') and differ in their mixing weights only.

    Attributes:
        norm: the norm of the map, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm: EdgeNorm | None = None

    @abstractmethod
    def shared_map(self, x: Tensor) -> Tensor:
        """Compute the map before the norm, (B, C, H, W) -> (B, C, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map and its norm, (B, C, H, W) -> (B, C, H', W')."""
        y = self.shared_map(x)
        return y if self.norm is None else self.norm(y)
