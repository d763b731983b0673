"""Query and gallery features with the way to compare them: scored as a whole, or looked at query by query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.evaluation.distances import Distances, Metric
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.ranking import RetrievalResult, evaluate_distances, evaluate_retrieval


@dataclass(frozen=True)
class Comparison:
    """Q query and G gallery features.

    Attributes:
        metric: of the distances.
        reranked: whether the distances are those of k-reciprocal re-ranking.
        device: what computes the distances that are not re-ranked.
    """

    query: FeatureSet
    gallery: FeatureSet
    metric: Metric
    reranked: bool
    device: torch.device

    def evaluate(self, ranks: Sequence[int]) -> RetrievalResult:
        """Scores the ranking of the gallery for every query; see `evaluate_retrieval`."""
        query, gallery = self.query, self.gallery
        numbers = (query.identities, gallery.identities, query.cameras, gallery.cameras)
        if self.reranked:
            return evaluate_distances(self._reranked(), *numbers, ranks=ranks)
        return evaluate_retrieval(*self._tensors(query), *numbers, metric=self.metric, ranks=ranks)

    def distances(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, G) distances of the chosen queries; Euclidean ones are squared, as they are ranked."""
        if self.reranked:
            return _rows(self._reranked(), chosen)
        blocks = Distances(*self._tensors(self.query.select(chosen)), self.metric).blocks()
        # A block is gone with the next.
        return np.concatenate([block.cpu().numpy().copy() for block in blocks])

    @property
    def squared(self) -> bool:
        """Whether `distances` gives squares."""
        return self.metric == "euclidean" and not self.reranked

    def _reranked(self) -> Iterable[Tensor]:
        from autoreid.evaluation.reranking import rerank

        return rerank(self.query.features, self.gallery.features, metric=self.metric)

    def _tensors(self, query: FeatureSet) -> tuple[Tensor, Tensor]:
        query_features, gallery_features = (
            torch.from_numpy(x.features).to(self.device) for x in (query, self.gallery)
        )
        return query_features, gallery_features


def _rows(blocks: Iterable[Tensor], chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The chosen rows of a matrix that comes in blocks of rows."""
    start, found = 0, {}
    for block in blocks:
        for row in chosen[(chosen >= start) & (chosen < start + len(block))]:
            found[row] = block[row - start].cpu().numpy().copy()
        start += len(block)
    return np.stack([found[row] for row in chosen])
