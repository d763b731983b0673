"""What candidate operations have in common: a map for each edge, and the norm at its end.

A candidate returns its norms instead of computing them, so that a cell can normalise all maps of one level together:
with batch statistics that are shared over ranks, this takes one collective instead of one for each norm.
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
    """The inputs of a candidate on the edges that leave one node.

    Attributes:
        x: output of the node, (B, C, H, W).
        rectified: ReLU(x).
        edges: which of the E edges to compute.
        middle: output of the norm halfway, of candidates that have one.
        scale: scale of the last norm, (E·C,): the mixing weights. None for the norm's own scale.
    """

    x: Tensor
    rectified: Tensor
    edges: slice = ALL
    middle: Tensor | None = None
    scale: Tensor | None = None


class Candidate(nn.Module, ABC):
    """An operation with separate weights for each of E edges. It ends with a norm, whose scale is the mixing weight.

    Attributes:
        shares_statistics: whether the norms use the statistics of the batch over all ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shares_statistics = False

    def middle(self, inputs: EdgeInputs) -> Norm | None:  # noqa: ARG002
        """Returns the norm halfway, if the operation has one."""
        return None

    @abstractmethod
    def last(self, inputs: EdgeInputs) -> Norm:
        """Returns the norm at the end, of a map (B, E·C, H', W')."""

    def forward(self, x: Tensor, edges: slice = ALL) -> Tensor:
        """Computes the operation on its own, (B, C, H, W) -> (B, E·C, H', W')."""
        inputs = EdgeInputs(x, F.relu(x), edges)
        norm = self.middle(inputs)
        if norm is not None:
            inputs = inputs._replace(middle=self._normalise(norm))
        return self._normalise(self.last(inputs))

    def _normalise(self, norm: Norm) -> Tensor:
        return normalise_level([norm], self.training, self.shares_statistics)[0]

    def state_of_edge(self, state: Mapping[str, Tensor], edge: int, edges: int) -> dict[str, Tensor]:
        """Selects the state dict of one of E edges, as an operation with a single edge has it."""
        return {
            name: value.unflatten(0, (edges, -1))[edge] if value.dim() else value
            for name, value in state.items()
        }


class PerEdge(Candidate):
    """Turns ordinary modules into a candidate: one copy for each edge, then the norm that the mixing weight scales.

    It computes one edge after the other. An operation that pays off can be written as a `Candidate` later, which
    computes all edges at once.

    Args:
        copies: a module for each edge, (B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉).
        channels: C.
        affine: whether the norm learns a scale and a shift.
    """

    def __init__(self, copies: Sequence[nn.Module], channels: int, affine: bool) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copies)
        self.norm = EdgeNorm(channels, len(copies), affine)

    def last(self, inputs: EdgeInputs) -> Norm:
        """(B, C, H, W) -> (B, E·C, H', W')."""
        maps = [copy(inputs.x) for copy in list(self.copies)[inputs.edges]]
        return self.norm.of(torch.cat(maps, dim=1), inputs.scale, inputs.edges)

    def state_of_edge(self, state: Mapping[str, Tensor], edge: int, edges: int) -> dict[str, Tensor]:
        """Selects the copy of an edge, and its part of the norm."""
        norm = {name: value for name, value in state.items() if name.startswith("norm.")}
        copy = {
            name.replace(f"copies.{edge}.", "copies.0.", 1): value
            for name, value in state.items()
            if name.startswith(f"copies.{edge}.")
        }
        return copy | super().state_of_edge(norm, edge, edges)


class Shared(nn.Module, ABC):
    """A candidate without weights: its map (B, C, H', W') is the same on every edge, apart from the mixing weight.

    Attributes:
        norm: the norm of the map; None if it has none.
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
