"""The interface of the terms of the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from autoreid.models import OutputSizes


class Outputs(NamedTuple):
    """The outputs of a network in training mode.

    Attributes:
        embedding: (B, D), before the neck.
        logits: (B, identities), or (B, identities, parts) of a network with a classifier for each part.
        auxiliary: logits (B, identities) of the auxiliary head; None if the network has none.
        feature_map: the last feature map (B, C, h, w); None unless a term needs it.
    """

    embedding: Tensor
    logits: Tensor
    auxiliary: Tensor | None = None
    feature_map: Tensor | None = None


class Term(nn.Module, ABC):
    """A term of the loss. Its constructor takes the section `losses` of the config.

    A term may have a state, such as the centres of the identities: buffers that it creates in `prepare` and changes in
    `update`. Checkpoints save them. Forward passes must not change them, because not every pass belongs to a step: a
    second-order search also computes the loss with shifted weights.

    In trainings, a term may also have parameters, created in `prepare`; they are trained with the head of the network.

    Attributes:
        needs_map: whether the term needs the last feature map; only in trainings.
        compares_images: whether the term compares images of one identity, of which a batch must have two; known
            after `prepare`.
    """

    needs_map: ClassVar[bool] = False
    compares_images: bool = False

    @abstractmethod
    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar, in float32 or float64.

        On several ranks, each rank computes the term for its share of the batch, and the gradients are averaged.

        Args:
            outputs: outputs of the network for B images.
            labels: (B,) int64.
        """

    def prepare(self, sizes: OutputSizes, labels: Tensor) -> None:
        """Create the state and the parameters of the term, if it has any. Called once, before the first pass.

        Args:
            sizes: the sizes of the network's outputs.
            labels: (N,) int64, all labels that batches may have, sorted.
        """

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Update the state of the term, if it has one.

        All ranks call it once in each step, after the gradients of the step have been computed. All passes of a step,
        including those of its micro-batches, thus have the state from before the step.

        Args:
            embeddings: (B, D), detached: this rank's share of the global batch. The ranks' shares follow each other in
                the order of the ranks, so that `gather` returns the global batch in an order that does not depend on
                the number of ranks or micro-batches.
            labels: (B,) int64.
        """
