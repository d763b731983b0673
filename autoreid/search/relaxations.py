"""Relaxations: how alphas become mixing weights; any of them works with any space."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from autoreid.search.alphas import Alphas


class Relaxation(Protocol):
    """What the loop asks of a relaxation."""

    def mixing(self, alphas: Alphas) -> dict[str, Tensor]:
        """Mixing weights for one forward pass of the search, differentiable in the alphas."""

    def probabilities(self, alphas: Alphas) -> dict[str, Tensor]:
        """Each choice's probability without noise or gradient: what evaluation mixes by and a genotype is read from."""


class Softmax:
    """Mixing weights softmax(alpha) over the operations of each edge (DARTS, eq. 2)."""

    def mixing(self, alphas: Alphas) -> dict[str, Tensor]:
        """(E, O) a group, each row summing to 1."""
        return {name: torch.softmax(alpha, dim=-1) for name, alpha in alphas.groups.items()}

    def probabilities(self, alphas: Alphas) -> dict[str, Tensor]:
        """The same, without gradient."""
        with torch.no_grad():
            return self.mixing(alphas)
