"""What every term of the loss has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Outputs(NamedTuple):
    """The outputs of a network in training mode.

    Attributes:
        embedding: (B, D), before the neck.
        logits: (B, identities), or (B, identities, parts) of a network with a classifier for each part.
        auxiliary: logits (B, identities) of the auxiliary head, if the network has one.
    """

    embedding: Tensor
    logits: Tensor
    auxiliary: Tensor | None = None


class Term(nn.Module, ABC):
    """A term of the loss, built from the section `losses` of the config."""

    @abstractmethod
    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Computes the term, a scalar, in float32 or float64.

        On several ranks, the gradient is averaged over them. Each rank sees its own share of the batch.

        Args:
            outputs: of the network, for B images.
            labels: (B,) int64.
        """
