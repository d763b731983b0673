"""Multi-query: the images of one person by one camera are merged into one query."""

from __future__ import annotations

from typing import Literal

import numpy as np

from autoreid.config import Metric
from autoreid.data.records import sightings
from autoreid.evaluation.features import FeatureSet

Pooling = Literal["mean", "max"]


def merge_queries(query: FeatureSet, pooling: Pooling, metric: Metric) -> FeatureSet:
    """Return one query for each identity and camera, with the mean or the maximum of its images' features.

    This is the multi-query protocol of Market-1501 (Zheng et al., ICCV 2015). With the metric "cosine", the features
    are normalised before. The queries are sorted by identity and camera; each has the path of its first image.
    """
    first, owner = sightings(query.identities, query.cameras)
    features = query.features
    if metric == "cosine":
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        features = features / np.maximum(norms, np.finfo(np.float32).tiny)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner)
    starts = np.cumsum(counts) - counts
    reduce = np.maximum if pooling == "max" else np.add
    pooled = reduce.reduceat(features[order], starts, axis=0)
    if pooling == "mean":
        pooled /= counts[:, None]
    chosen = query.select(first)
    return FeatureSet(pooled.astype(np.float32), chosen.identities, chosen.cameras, chosen.paths)
