"""mAP, CMC and mINP of single-query retrieval, over blocks of queries.

Shape letters: Q queries (q of them in a block), G gallery images, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.data.records import JUNK
from autoreid.errors import RunError

ArrayLike = Tensor | npt.NDArray[np.generic]

#: Bounds the working set: about a dozen (64, G) arrays are alive at once.
QUERIES_PER_BLOCK = 64


@dataclass(frozen=True)
class RetrievalResult:
    """How well the gallery was ranked, averaged over the queries that have a match to find.

    Attributes:
        map: mean average precision; a query's is the mean over its matches of (matches so far / rank).
        cmc: rank k -> share of queries with a match among the first k images.
        minp: mean inverse negative penalty, matches / rank of the last match (arXiv 2001.04193, eq. 1).
        valid_queries: queries with at least one match in the gallery; only these are counted.
        queries: all queries given.
    """

    map: float
    cmc: dict[int, float]
    minp: float
    valid_queries: int
    queries: int


def evaluate_retrieval(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    ranks: Sequence[int] = (1, 5, 10, 20),
) -> RetrievalResult:
    """Rank the gallery for each query by Market-1501's protocol and score the rankings.

    Gallery images of the query's own identity and camera, and those of identity JUNK, are removed.
    Distances are float32, squared Euclidean or one minus the cosine similarity; equal distances keep
    the gallery's order. A CMC rank beyond the gallery's end has the value at its end.

    Features are (Q, D) and (G, D), identities and cameras (Q,) or (G,) integers; tensors may be on any one
    device. `ranks` are the ranks of the CMC to report.

    Raises:
        ValueError: shapes do not fit together, or the metric is unknown.
        RunError: features are not all finite, or no query has a match.
    """
    query, gallery = torch.as_tensor(query_features).float(), torch.as_tensor(gallery_features).float()
    numbers = (query_ids, query_cameras, gallery_ids, gallery_cameras)
    q_ids, q_cams, g_ids, g_cams = (torch.as_tensor(values, device=query.device) for values in numbers)
    _check(query, gallery, q_ids, q_cams, g_ids, g_cams)
    if metric == "cosine":
        query, gallery = F.normalize(query), F.normalize(gallery)
    elif metric != "euclidean":
        raise ValueError(f"unknown metric {metric!r}: must be 'euclidean' or 'cosine'")

    kept = g_ids != JUNK
    gallery, g_ids, g_cams = gallery[kept], g_ids[kept], g_cams[kept]
    blocks = []
    for start in range(0, len(query), QUERIES_PER_BLOCK):
        block = slice(start, start + QUERIES_PER_BLOCK)
        same_id = q_ids[block, None] == g_ids
        removed = same_id & (q_cams[block, None] == g_cams)
        distances = _distances(query[block], gallery, metric)
        blocks.append(_score(distances, same_id & ~removed, removed))
    # (3, valid queries): average precision, rank of the first match, inverse negative penalty.
    scores = torch.cat(blocks, dim=1) if blocks else torch.empty(3, 0)
    valid_queries = scores.shape[1]
    if valid_queries == 0:
        raise RunError(f"none of the {len(query)} queries has a match in the gallery under another camera")
    precision, first, inverse_penalty = scores
    cmc = {rank: (first <= rank).double().mean().item() for rank in ranks}
    map_, minp = precision.mean().item(), inverse_penalty.mean().item()
    return RetrievalResult(map_, cmc, minp, valid_queries, len(query))


def _distances(query: Tensor, gallery: Tensor, metric: str) -> Tensor:
    """(q, G) float32 distances; with cosine the features are already of unit length."""
    products = query @ gallery.T
    if metric == "cosine":
        return 1 - products
    return query.square().sum(1)[:, None] + gallery.square().sum(1) - 2 * products


def _score(distances: Tensor, matches: Tensor, removed: Tensor) -> Tensor:
    """(3, valid queries) float64 scores of (q, G) distances; rows are named in `evaluate_retrieval`."""
    valid = matches.any(dim=1)
    if not valid.any():
        return torch.empty(3, 0, dtype=torch.float64, device=distances.device)
    order = distances[valid].argsort(dim=1, stable=True)
    ranked_matches = matches[valid].gather(1, order)
    rank = (~removed[valid].gather(1, order)).cumsum(dim=1)
    found = ranked_matches.cumsum(dim=1)
    total = found[:, -1].double()
    precision = (found.double() / rank).masked_fill(~ranked_matches, 0).sum(1) / total
    first = rank.masked_fill(~ranked_matches, rank.shape[1]).amin(1)
    last = rank.masked_fill(~ranked_matches, 0).amax(1)
    return torch.stack([precision, first.double(), total / last])


def _check(query: Tensor, gallery: Tensor, *numbers: Tensor) -> None:
    """Raise if shapes do not fit together or a feature is not finite."""
    expected = [(len(query),)] * 2 + [(len(gallery),)] * 2
    shapes = [tuple(values.shape) for values in numbers]
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1] or shapes != expected:
        raise ValueError(
            f"features {tuple(query.shape)} and {tuple(gallery.shape)} with query ids, query cameras, "
            f"gallery ids, gallery cameras {shapes}: must be (Q, D), (G, D) and (Q,), (Q,), (G,), (G,)"
        )
    bad = {side: int((~x.isfinite()).any(1).sum()) for side, x in (("query", query), ("gallery", gallery))}
    if any(bad.values()):
        counts = " and ".join(f"{count} {side} rows" for side, count in bad.items() if count)
        raise RunError(f"features hold NaN or infinity in {counts}; a ranking of them would mean nothing")
