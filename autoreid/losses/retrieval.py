"""The loss of searches and trainings: classification of identities and ranking of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.losses.triplet import batch_hard_triplet


class LossTerms(NamedTuple):
    """The loss to minimise and the two terms that it weighs, each a scalar tensor."""

    total: Tensor
    classification: Tensor
    triplet: Tensor


class RetrievalLoss(nn.Module):
    """λ · cross-entropy + (1 - λ) · batch-hard triplet (Auto-ReID, arXiv 1903.09776, section 3.3).

    With `gather`, triplets are mined across ranks: the average over ranks of the loss and of its gradients
    is then that of one process on the whole batch. Ranks must hold equal shares of the batch.

    Args:
        classification_weight: λ, from 0 to 1.
        margin: of the triplet loss; None for the soft margin.
        label_smoothing: share of the target spread evenly over all identities, from 0 to 1.
        gather: concatenates a tensor of every rank along dimension 0, in rank order; must accept integers,
            and for floats be differentiable with a backward that sums over ranks. None mines within the
            rank's own share.
        rank: this rank's place in what `gather` returns.
    """

    def __init__(
        self,
        classification_weight: float,
        margin: float | None,
        label_smoothing: float,
        gather: Callable[[Tensor], Tensor] | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.classification_weight = classification_weight
        self.margin = margin
        self.label_smoothing = label_smoothing
        self.gather = gather
        self.rank = rank

    def forward(self, embeddings: Tensor, logits: Tensor, labels: Tensor) -> LossTerms:
        """Weigh the terms for embeddings before the neck (B, D), logits and labels (B,)."""
        classification = self.classify(logits, labels)
        if self.gather is None:
            triplet = batch_hard_triplet(embeddings, labels, self.margin)
        else:
            everyone, their_labels = self.gather(embeddings), self.gather(labels)
            first = self.rank * len(labels)
            triplet = batch_hard_triplet(embeddings, labels, self.margin, everyone, their_labels, first)
        total = self.classification_weight * classification + (1 - self.classification_weight) * triplet
        return LossTerms(total, classification, triplet)

    def classify(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of logits (B, identities) or (B, identities, parts), each part a classifier."""
        # Half-precision logits lose the small differences between many identities.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if logits.dim() > 2:
            # A row for each part: torch's loss over (B, identities, parts) is not deterministic on GPUs.
            labels = labels[:, None].expand(-1, logits.shape[2]).flatten()
            logits = logits.transpose(1, 2).flatten(0, 1)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
