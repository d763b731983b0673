"""The batch-hard triplet loss, for a single process or for one rank's share of a larger batch.

Shape letters: B anchors on this rank, A embeddings on all ranks, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.config import Losses
from autoreid.distributed import gather, rank
from autoreid.layers.autocast import without_autocast
from autoreid.losses.term import Outputs, Term

#: Lower bound of squared distances, because the derivative of the square root is infinite at zero.
SMALLEST_SQUARE = 1e-12


def batch_hard_triplet(
    embeddings: Tensor,
    labels: Tensor,
    margin: float | None,
    all_embeddings: Tensor | None = None,
    all_labels: Tensor | None = None,
    first_anchor: int = 0,
) -> Tensor:
    """Compute the mean loss over the anchors that have a positive and a negative (arXiv 1703.07737, eq. 5).

    The positive of an anchor is the farthest other embedding with the same label, and the negative is the nearest
    embedding with another label, by Euclidean distance. If no anchor has both, the loss and its gradients are zero.

    To find positives and negatives on all ranks, pass the embeddings and labels of all ranks, gathered in rank
    order, with equal shares. The average of the result over the ranks is then the loss of one process on the whole
    batch. The gradients agree as well if the backward pass of the gather sums the ranks' gradients.

    Args:
        embeddings: (B, D). The loss is computed in float32, or in float64 for float64, even under autocast.
        labels: (B,) integers.
        margin: the loss of an anchor is max(positive - negative + margin, 0); with None, the soft margin
            log(1 + exp(positive - negative)).
        all_embeddings: (A, D), with gradients.
        all_labels: (A,) integers.
        first_anchor: index of this rank's first row in `all_embeddings`.
    """
    if all_embeddings is None or all_labels is None:
        all_embeddings, all_labels = embeddings, labels
    with without_autocast(embeddings.device.type):
        embeddings, all_embeddings = _at_least_float32(embeddings), _at_least_float32(all_embeddings)
        positive, negative = _hardest(embeddings, labels, all_embeddings, all_labels, first_anchor)
        difference = _distance(embeddings, all_embeddings[positive]) - _distance(
            embeddings, all_embeddings[negative]
        )
        losses = F.softplus(difference) if margin is None else F.relu(difference + margin)

        # Each rank counts the valid anchors of all ranks itself, which avoids another collective.
        same = (all_labels[:, None] == all_labels).sum(1)
        valid = (same > 1) & (same < len(all_labels))
        own = valid[first_anchor : first_anchor + len(labels)]
        ranks = len(all_labels) / len(labels)
        return torch.where(own, losses, 0).sum() * ranks / valid.sum().clamp(min=1)


def unit_length(embeddings: Tensor) -> Tensor:
    """Scale embeddings (B, D) to length 1, in float32 or float64."""
    with without_autocast(embeddings.device.type):
        return F.normalize(_at_least_float32(embeddings), dim=1)


class BatchHardTriplet(Term):
    """Batch-hard triplet loss of the embeddings, with positives and negatives of this rank or of all ranks."""

    def __init__(self, settings: Losses) -> None:
        super().__init__()
        self.margin = settings.margin
        self.across_ranks = settings.mine_across_ranks
        self.normalise = bool(settings.normalise)

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar."""
        embeddings = outputs.embedding
        if self.normalise:
            embeddings = unit_length(embeddings)
        if not self.across_ranks:
            return batch_hard_triplet(embeddings, labels, self.margin)
        first = rank() * len(labels)
        return batch_hard_triplet(embeddings, labels, self.margin, gather(embeddings), gather(labels), first)


@torch.no_grad()
def _hardest(
    embeddings: Tensor, labels: Tensor, all_embeddings: Tensor, all_labels: Tensor, first_anchor: int
) -> tuple[Tensor, Tensor]:
    """Return the rows of each anchor's positive and negative in `all_embeddings`; row 0 if there is none."""
    # From differences instead of products: exact for near duplicates, and equal for a pair on every rank.
    distances = torch.cdist(embeddings, all_embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == all_labels
    rows = torch.arange(len(all_labels), device=labels.device)
    itself = rows[first_anchor : first_anchor + len(labels), None] == rows
    hardest_positive = distances.masked_fill(itself | ~same, -torch.inf).argmax(1)
    hardest_negative = distances.masked_fill(same, torch.inf).argmin(1)
    return hardest_positive, hardest_negative


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distance of each row of a (B, D) to the same row of b, (B,).

    First and second derivatives are finite everywhere.
    """
    return (a - b).square().sum(1).clamp(min=SMALLEST_SQUARE).sqrt()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
