"""Query and gallery features with a distance: evaluate all queries, or inspect the distances of some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.config import Metric
from autoreid.evaluation.distances import Distances
from autoreid.evaluation.features import FeatureSet
from autoreid.evaluation.protocol import Ints, Protocol, own_images
from autoreid.evaluation.query_expansion import expand_queries
from autoreid.evaluation.ranking import RetrievalResult, evaluate_blocks
from autoreid.evaluation.reranking import rerank
from autoreid.evaluation.roc import Roc, measure_roc


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
        return evaluate_blocks(self._blocks(), self._protocol, ranks)

    def distances(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the (n, G) distances of the chosen queries; Euclidean ones are squared (see `squared`)."""
        if self.reranked:
            return _rows(self._reranked, chosen)
        blocks = Distances(*self._tensors(self.query.select(chosen)), self.metric).blocks()
        # `blocks` reuses one buffer, so each block is copied.
        return np.concatenate([block.cpu().numpy().copy() for block in blocks])

    def roc(self) -> Roc:
        """Measure how well a threshold on the distance separates pairs of the same person, see `measure_roc`."""
        return measure_roc(self._blocks, self._protocol)

    def expanded(self, images: int, alpha: float) -> Comparison:
        """Return the comparison with expanded queries, see `expand_queries`."""
        features = expand_queries(*self._tensors(self.query), self._own, images, alpha, self.metric)
        return replace(self, query=replace(self.query, features=features.cpu().numpy()))

    @property
    def squared(self) -> bool:
        """Whether `distances` returns squared distances."""
        return self.metric == "euclidean" and not self.reranked

    @cached_property
    def _own(self) -> Ints:
        return own_images(self.query.paths.tolist(), self.gallery.paths.tolist())

    @cached_property
    def _protocol(self) -> Protocol:
        query, gallery = self.query, self.gallery
        labels = (query.identities, gallery.identities, query.cameras, gallery.cameras)
        return Protocol(*labels, self.keep_same_camera, self._own)

    def _blocks(self) -> Iterator[Tensor]:
        """Yield the distances in blocks of queries (q, G); the next overwrites a block."""
        if self.reranked:
            return iter(self._reranked)
        return Distances(*self._tensors(self.query), self.metric).blocks()

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
