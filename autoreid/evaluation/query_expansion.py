"""Query expansion: a query's feature becomes a weighted mean of itself and the nearest gallery features.

Shape letters: Q queries (q of them in a block), G gallery images, K nearest gallery images of a query, D embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.config import Metric
from autoreid.evaluation.distances import ArrayLike, Distances, nearest
from autoreid.evaluation.protocol import Ints


def expand_queries(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    own: Ints,
    images: int,
    alpha: float = 3.0,
    metric: Metric = "euclidean",
) -> Tensor:
    """Return the expanded query features, by alpha query expansion (Radenović et al. 2018, arXiv 1711.02512).

    The query has weight 1, and each of its nearest gallery images max(0, cosine similarity to the query)^alpha; the
    weights are divided by their sum. With alpha 0, all weights are equal: average query expansion (Chum et al. 2007).
    All gallery images take part, whatever their identity and camera; only a query's own image does not. With the metric
    "cosine", the mean is that of the normalised features. Ties between distances are broken by gallery order.

    Args:
        query_features: (Q, D).
        gallery_features: (G, D), on the same device.
        own: gallery index of each query's own image (Q,); -1 if the gallery lacks it.
        images: number of nearest gallery images, K; less than G.
        alpha: exponent of the weights, at least 0; a larger one gives more weight to the nearest images.
        metric: metric that finds the nearest images, "euclidean" or "cosine".

    Returns:
        (Q, D) float32.

    Raises:
        ValueError: the shapes do not match, or `images` or `alpha` is out of range.
        DivergedError: a feature is NaN or infinite.
    """
    between = Distances(query_features, gallery_features, metric)
    Q, G = between.shape
    if not 1 <= images < G or alpha < 0:
        raise ValueError(
            f"images={images}, alpha={alpha}: images must be between 1 and {G - 1} for a gallery of {G} images, alpha "
            f"at least 0"
        )
    expanded = torch.empty_like(between.query)
    keys = torch.arange(G, device=expanded.device).repeat(min(Q, between.block_rows), 1)
    start = 0
    for block in between.blocks():
        rows = slice(start, start := start + len(block))
        itself = torch.from_numpy(own[rows]).to(block.device)
        has_own = (itself >= 0).nonzero().flatten()
        block[has_own, itself[has_own]] = torch.inf
        # Rounding makes the distances of equal features slightly negative.
        found = nearest(block.clamp_min_(0), keys[: len(block)], images)
        expanded[rows] = _weighted_mean(between.query[rows], between.gallery, found, alpha)
    return expanded


def _weighted_mean(query: Tensor, gallery: Tensor, found: Tensor, alpha: float) -> Tensor:
    """Return the (q, D) means of queries and the gallery images `found` (q, K) for them."""
    total, weights = query.clone(), query.new_ones(len(query))
    # One neighbour of all queries at a time: (q, K, D) may not fit into the memory.
    for column in found.T:
        neighbour = gallery[column]
        weight = F.cosine_similarity(query, neighbour).clamp_min(0).pow(alpha)
        total.addcmul_(neighbour, weight[:, None])
        weights += weight
    return total / weights[:, None]
