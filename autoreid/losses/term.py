"""The interface of the terms of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Outputs(NamedTuple):
    """The outputs of a network in training mode.

    Attributes:
        embedding: (B, D), before the neck.
        logits: (B, identities), or (B, identities, parts) of a network with a classifier for each part.
        auxiliary: logits (B, identities) of the auxiliary head; None if the network has none.
    """

    embedding: Tensor
    logits: Tensor
    auxiliary: Tensor | None = None


class Term(nn.Module, ABC):
    """A term of the loss. Its constructor takes the section `losses` of the config."""

    @abstractmethod
    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar, in float32 or float64.

        On several ranks, each rank computes the term for its share of the batch, and the gradients are averaged.

        Args:
            outputs: outputs of the network for B images.
            labels: (B,) int64.
        """
