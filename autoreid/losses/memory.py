"""A memory of the identities' embeddings that takes the place of a classifier.

Shape letters: B images on this rank, A images on all ranks, N identities, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.config import Losses
from autoreid.distributed import gather
from autoreid.layers.autocast import without_autocast
from autoreid.losses.term import Outputs, Term
from autoreid.losses.triplet import unit_length
from autoreid.models import OutputSizes


class ClassMemory(Term):
    """Cross-entropy of the cosine similarities to a centre of each identity (MSINet, arXiv 2303.07065).

    The centres are not trained. They follow the embeddings: in each step, every image of the batch, in the order of
    the global batch, moves its identity's centre c to momentum · c + (1 - momentum) · x, scaled to length 1, where x is
    its embedding of length 1. Centres of identities that have not been seen yet are zero.

    Only the embeddings are used. A search can therefore give weights and alphas different identities, with a memory
    for each.

    Attributes:
        centres: (N, D).
        labels: (N,), the label of each centre, ascending.
    """

    centres: Tensor
    labels: Tensor

    def __init__(self, settings: Losses) -> None:
        super().__init__()
        self.temperature, self.momentum = settings.memory_temperature, settings.memory_momentum

    def prepare(self, sizes: OutputSizes, labels: Tensor) -> None:
        """Create empty centres."""
        self.register_buffer("centres", torch.zeros(len(labels), sizes.embedding))
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """Compute the term, a scalar."""
        embeddings = unit_length(outputs.embedding)
        with without_autocast(embeddings.device.type):
            similarities = embeddings @ self.centres.T
            return F.cross_entropy(similarities / self.temperature, self._rows(labels))

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Move the centres of the batch's identities, image after image."""
        embeddings_AD, rows_A = unit_length(gather(embeddings)), self._rows(gather(labels))
        for embedding, row in zip(embeddings_AD.split(1), rows_A.split(1), strict=True):
            moved = torch.lerp(embedding, self.centres.index_select(0, row), self.momentum)
            self.centres.index_copy_(0, row, F.normalize(moved))

    def _rows(self, labels: Tensor) -> Tensor:
        return torch.searchsorted(self.labels, labels)
