"""What a network is trained for: the retrieval loss of its output on a batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoreid.config import Precision
from autoreid.data.loaders import Batch
from autoreid.losses import LossTerms, RetrievalLoss
from autoreid.training.precision import allowing_tf32, autocast


class Score(NamedTuple):
    """A batch's losses and the share of its images that were given their own identity."""

    losses: LossTerms
    accuracy: Tensor


class Objective:
    """The retrieval loss on a batch, of a network that computes in some precision.

    Args:
        precision: of the network; losses are computed in float32.
        auxiliary_weight: of the cross-entropy of an auxiliary head, for networks that have one.
    """

    def __init__(
        self, loss: RetrievalLoss, precision: Precision, device: torch.device, auxiliary_weight: float = 0.0
    ) -> None:
        self.loss = loss
        self.precision: Precision = precision
        self.device = device
        self.auxiliary_weight = auxiliary_weight

    def passes(self) -> AbstractContextManager[None]:
        """In which each score is to be computed, and differentiated too: backward passes have products as well."""
        return allowing_tf32(self.precision, self.device)

    def __call__(self, network: Callable[..., tuple[Tensor, ...]], batch: Batch, *inputs: Any) -> Score:
        """Scores `network(images, *inputs)` on one batch; the losses are computed in float32.

        The network gives an embedding (B, D), logits (B, identities) or (B, identities, parts), and, if it has an
        auxiliary head, that head's logits.
        """
        with autocast(self.precision, self.device):
            embedding, logits, *auxiliary = network(batch.images, *inputs)
        losses = self.loss(embedding, logits, batch.labels)
        for head in auxiliary:
            extra = self.loss.classify(head, batch.labels)
            losses = losses._replace(total=losses.total + self.auxiliary_weight * extra)
        whole = logits.detach().flatten(2).mean(2) if logits.dim() > 2 else logits.detach()
        return Score(losses, (whole.argmax(1) == batch.labels).float().mean())
