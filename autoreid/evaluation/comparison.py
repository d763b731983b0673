"""Query and gallery features with a distance: evaluate all queries, or inspect the distances of some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.config import Metric
from autoreid.evaluation.distances import Distances
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.protocol import own_images
from autoreid.evaluation.ranking import RetrievalResult, evaluate_distances, evaluate_retrieval
from autoreid.evaluation.reranking import rerank


@dataclass(frozen=True)
class Comparison:
    """The distances between Q query and G gallery features.

    Attributes:
        metric: the distance metric.
        reranked: whether k-reciprocal re-ranking is applied to the distances.
        device: the device that computes the distances.
        keep_same_camera: whether gallery images by the query's camera are matches, see `evaluate_retrieval`.
    """

    query: FeatureSet
    gallery: FeatureSet
    metric: Metric
    reranked: bool
    device: torch.device
    keep_same_camera: bool = False

    def evaluate(self, ranks: Sequence[int]) -> RetrievalResult:
        """Rank the gallery for each query and return mAP, CMC and mINP; see `evaluate_retrieval`."""
        query, gallery = self.query, self.gallery
        labels = (query.identities, gallery.identities, query.cameras, gallery.cameras)
        own = own_images(query.paths.tolist(), gallery.paths.tolist())
        rules: dict[str, Any] = {"keep_same_camera": self.keep_same_camera, "own": own}
        if self.reranked:
            return evaluate_distances(self._reranked, *labels, ranks=ranks, **rules)
        return evaluate_retrieval(*self._tensors(query), *labels, metric=self.metric, ranks=ranks, **rules)

    def distances(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the (n, G) distances of the chosen queries; Euclidean ones are squared (see `squared`)."""
        if self.reranked:
            return _rows(self._reranked, chosen)
        blocks = Distances(*self._tensors(self.query.select(chosen)), self.metric).blocks()
        # `blocks` reuses one buffer, so each block is copied.
        return np.concatenate([block.cpu().numpy().copy() for block in blocks])

    @property
    def squared(self) -> bool:
        """Whether `distances` returns squared distances."""
        return self.metric == "euclidean" and not self.reranked

    @cached_property
    def _reranked(self) -> Iterable[Tensor]:
        return rerank(*self._tensors(self.query), metric=self.metric)

    def _tensors(self, query: FeatureSet) -> tuple[Tensor, Tensor]:
        features = (query.features, self.gallery.features)
        query_features, gallery_features = (torch.from_numpy(x).to(self.device) for x in features)
        return query_features, gallery_features


def _rows(blocks: Iterable[Tensor], chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return the chosen rows of a matrix that is given in blocks of rows."""
    start, found = 0, {}
    for block in blocks:
        for row in chosen[(chosen >= start) & (chosen < start + len(block))]:
            found[row] = block[row - start].cpu().numpy().copy()
        start += len(block)
    return np.stack([found[row] for row in chosen])
