"""The base class of all networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A network that embeds images of people and, in training mode, classifies their identities.

    In training mode it returns the embedding (B, D) before the neck, the logits (B, identities), and the logits of an
    auxiliary head if it has one. In evaluation mode it returns the embedding (B, D) that is ranked.

    Attributes:
        has_auxiliary: whether the network has an auxiliary head.
        embeddings: number of vectors of equal size that the embedding in training mode consists of. The triplet loss is
            the mean of their triplet losses.
    """

    has_auxiliary = False
    embeddings = 1

    @abstractmethod
    def head(self) -> list[nn.Module]:
        """Return the submodules that form the head; all other submodules form the backbone.

        `training.backbone_scale` and `training.frozen_epochs` treat the backbone differently from the head.
        """

    def last_map(self) -> nn.Module | None:
        """Return the submodule whose output is the last feature map (B, C, h, w); None if the network names none.

        Terms of the loss that compare feature maps need it.
        """
        return None

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return published weights by their names in this network; those that it does not know keep their names."""
        return dict(weights)

    def set_epoch(self, epoch: int, epochs: int) -> None:
        """Tell the network the progress of the training; called before each step.

        Args:
            epoch: number of complete epochs.
            epochs: number of epochs in the whole training.
        """
