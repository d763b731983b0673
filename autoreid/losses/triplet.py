"""The triplet loss, for a single process or for one rank's share of a larger batch.

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
from autoreid.models import OutputSizes

#: Lower bound of squared distances, because the derivative of the square root is infinite at zero.
SMALLEST_SQUARE = 1e-12


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    margin: float | None,
    all_embeddings: Tensor | None = None,
    all_labels: Tensor | None = None,
    first_anchor: int = 0,
    weighted: bool = False,
) -> Tensor:
    """Compute the mean loss over the anchors that have a positive and a negative.

    Batch-hard (arXiv 1703.07737, eq. 5): the positive of an anchor is the farthest other embedding with the same label,
    and the negative is the nearest embedding with another label, by Euclidean distance. Weighted (the weighted
    regularised triplet loss of AGW, arXiv 2001.04193): the distances are means over all positives and all negatives,
    with the weights softmax(distance) and softmax(-distance).

    If no anchor has both, the loss and its gradients are zero.

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
        weighted: whether to weight all positives and negatives instead of taking the hardest.
    """
    if all_embeddings is None or all_labels is None:
        all_embeddings, all_labels = embeddings, labels
    with without_autocast(embeddings.device.type):
        embeddings, all_embeddings = _at_least_float32(embeddings), _at_least_float32(all_embeddings)
        differences = _weighted_difference if weighted else _hardest_difference
        difference = differences(embeddings, labels, all_embeddings, all_labels, first_anchor)
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


class Triplet(Term):
    """Triplet loss of the embeddings, with positives and negatives of this rank or of all ranks.

    If the embedding of a network consists of several vectors, it is the mean of their triplet losses.
    """

    def __init__(self, settings: Losses) -> None:
        super().__init__()
        self.margin = settings.margin
        self.weighted = settings.mining == "weighted"
        self.across_ranks = settings.mine_across_ranks
        self.normalise = bool(settings.normalise)
        self.count = 1

    def prepare(self, sizes: OutputSizes, labels: Tensor) -> None:  # noqa: ARG002
        """Keep the number of vectors that an embedding consists of."""
        self.count = sizes.embeddings

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar."""
        vectors = outputs.embedding.chunk(self.count, dim=1)
        return torch.stack([self._loss(vector, labels) for vector in vectors]).mean()

    def _loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.normalise:
            embeddings = unit_length(embeddings)
        if not self.across_ranks:
            return triplet_loss(embeddings, labels, self.margin, weighted=self.weighted)
        first = rank() * len(labels)
        everyone = gather(embeddings), gather(labels)
        return triplet_loss(embeddings, labels, self.margin, *everyone, first, self.weighted)


def _hardest_difference(
    embeddings: Tensor, labels: Tensor, all_embeddings: Tensor, all_labels: Tensor, first_anchor: int
) -> Tensor:
    """Return the distance to the hardest positive minus that to the hardest negative, (B,), for valid anchors."""
    with torch.no_grad():
        # From differences instead of products: exact for near duplicates, and equal for a pair on every rank.
        distances = torch.cdist(embeddings, all_embeddings, compute_mode="donot_use_mm_for_euclid_dist")
        positive, negative = _masks(labels, all_labels, first_anchor)
        hardest_positive = distances.masked_fill(~positive, -torch.inf).argmax(1)
        hardest_negative = distances.masked_fill(~negative, torch.inf).argmin(1)
    return _distance(embeddings, all_embeddings[hardest_positive]) - _distance(
        embeddings, all_embeddings[hardest_negative]
    )


def _weighted_difference(
    embeddings: Tensor, labels: Tensor, all_embeddings: Tensor, all_labels: Tensor, first_anchor: int
) -> Tensor:
    """Return the weighted distance to the positives minus that to the negatives, (B,), for valid anchors."""
    distances = _distance(embeddings[:, None], all_embeddings)
    of_positives, of_negatives = (
        # Not -inf: the softmax of a row without any would be NaN, also in its gradient.
        ((sign * distances).masked_fill(~chosen, -1e30).softmax(1) * distances).sum(1)
        for sign, chosen in zip((1, -1), _masks(labels, all_labels, first_anchor), strict=True)
    )
    return of_positives - of_negatives


def _masks(labels: Tensor, all_labels: Tensor, first_anchor: int) -> tuple[Tensor, Tensor]:
    """Return the positives and the negatives of each anchor, both (B, A); an anchor is not its own positive."""
    same = labels[:, None] == all_labels
    rows = torch.arange(len(all_labels), device=labels.device)
    itself = rows[first_anchor : first_anchor + len(labels), None] == rows
    return same & ~itself, ~same


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distances (...) between a and b, both (..., D).

    First and second derivatives are finite everywhere.
    """
    return (a - b).square().sum(-1).clamp(min=SMALLEST_SQUARE).sqrt()


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
