"""Spatial alignment: where in an image a network responds should not depend on which image it is compared with.

Shape letters: B images on this rank, A images on all ranks, C channels, P positions of the last feature map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.config import Losses
from autoreid.distributed import gather, world_size
from autoreid.layers.autocast import without_autocast
from autoreid.losses.term import Outputs, Term
from autoreid.models import OutputSizes

#: The channels of queries and keys are this fraction of the feature map's.
REDUCTION = 8


class SpatialAlignment(Term):
    """Alignment of responses between the images of a batch (MSINet, arXiv 2303.07065).

    The response r(a, b) of image b to image a has a value for each position of b: the largest product of its feature
    with a feature of a. The term is the mean of 1 - cos(s(a), r(a, b)) over all pairs of images of one identity, each
    image with itself included, where s(a) is a learned attention: for each position of a, the largest product of its
    query with a key of a. With negatives, the mean of 1 - cos(r(a, b), r(a, c)) is added over all images b and c that
    show other identities than a.

    All images of the global batch are compared. The attention is used by this term only, so that the network costs
    the same in evaluation.
    """

    needs_map = True

    def __init__(self, settings: Losses) -> None:
        super().__init__()
        self.negatives = settings.alignment_negatives

    def prepare(self, sizes: OutputSizes, labels: Tensor) -> None:  # noqa: ARG002
        """Create the attention."""
        assert sizes.map_channels is not None  # noqa: S101
        reduced = max(1, sizes.map_channels // REDUCTION)
        self.query, self.key = (nn.Linear(sizes.map_channels, reduced) for _ in range(2))
        for layer in (self.query, self.key):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar."""
        assert outputs.feature_map is not None  # noqa: S101
        with without_autocast(outputs.feature_map.device.type):
            maps = outputs.feature_map
            features = (maps if maps.dtype == torch.float64 else maps.float()).flatten(2).mT  # (B, P, C)
            everyone, all_labels = gather(features), gather(labels)
            responses = self._responses(features, everyone)
            attention = (self.query(features) @ self.key(features).mT).amax(2)  # (B, P)
            same = labels[:, None] == all_labels  # (B, A)
            distances = 1 - F.cosine_similarity(attention[:, None], responses, dim=2)
            pairs = (all_labels[:, None] == all_labels).sum()
            # The mean over the ranks is then that of all pairs.
            term: Tensor = (distances * same).sum() * world_size() / pairs
            return term + self._between_negatives(responses, ~same) if self.negatives else term

    @staticmethod
    def _responses(features: Tensor, everyone: Tensor) -> Tensor:
        """Return r(a, b) of each image b of all ranks to each image a of this rank, (B, A, P)."""
        products = torch.einsum("bqc,apc->bapq", features, everyone)
        return products.max(3).values

    @staticmethod
    def _between_negatives(responses: Tensor, other: Tensor) -> Tensor:
        """Return the mean of 1 - cos(r(a, b), r(a, c)) over the pairs of other images (B, A) of each image a.

        The mean of the cosines of all pairs is the squared length of the mean of the unit vectors.
        """
        chosen = other.to(responses.dtype)
        weights = chosen / chosen.sum(1, keepdim=True).clamp(min=1)
        means = torch.einsum("ba,bap->bp", weights, F.normalize(responses, dim=2))
        return (1 - means.square().sum(1)).mean()
