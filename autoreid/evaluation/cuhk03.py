"""CUHK03's first protocol: one gallery image of each identity, drawn at random many times over.

Shape letters: Q queries (q of them in a block), G gallery images, R repeats, P identities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from autoreid.evaluation.distances import ArrayLike, Distances, Metric
from autoreid.evaluation.protocol import Ints, Protocol
from autoreid.evaluation.ranking import Block, RetrievalResult, match_blocks, score


def evaluate_single_shot(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    metric: Metric = "euclidean",
    ranks: Sequence[int] = (1, 5, 10, 20),
    repeats: int = 100,
    seed: int = 0,
) -> RetrievalResult:
    """Score as CUHK03's single-gallery-shot protocol does (Li et al., CVPR 2014).

    Each repeat draws one gallery image of every identity, and one of each query's true matches in place of
    its own identity's; the CMC is the mean over queries and repeats. mAP and mINP are `evaluate_retrieval`'s,
    over every gallery image, as they are published beside this CMC. Other arguments are those of
    `evaluate_retrieval`.

    Args:
        repeats: random galleries.
        seed: of their choice; the same seed gives the same result.

    Raises:
        ValueError: shapes do not fit together, the metric is unknown, or there is no repeat.
        RunError: features are not all finite, or no query has a match.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    distances = Distances(query_features, gallery_features, metric)
    protocol = Protocol(query_ids, gallery_ids, query_cameras, gallery_cameras)
    protocol.check(distances.shape)
    rng = np.random.default_rng(seed)
    galleries = _draw_galleries(protocol, rng.random((repeats, len(np.unique(protocol.identities)))))
    own_draws = rng.random((protocol.shape[0], repeats))
    #: rank -> queries, times repeats, whose match came at this rank
    hits = np.zeros(galleries.shape[1] + 2, np.int64)

    def counted(blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            first = _first_ranks(block, protocol, galleries, own_draws[block.queries])
            hits[:] += np.bincount(first.ravel(), minlength=len(hits))
            yield block

    result = score(counted(match_blocks(distances.blocks(), protocol)), protocol, ranks)
    share = np.cumsum(hits) / hits.sum()
    return dataclasses.replace(result, cmc={rank: float(share[min(rank, len(share) - 1)]) for rank in ranks})


def _draw_galleries(protocol: Protocol, draws: npt.NDArray[np.float64]) -> Ints:
    """(R, P) gallery images, one of every identity, for (R, P) random numbers in [0, 1)."""
    _, start, count = np.unique(protocol.identities, return_index=True, return_counts=True)
    return protocol.by_identity[start + (draws * count).astype(np.int64)]


def _first_ranks(
    block: Block, protocol: Protocol, galleries: Ints, own_draws: npt.NDArray[np.float64]
) -> Ints:
    """(R, valid queries) rank of the one true match that each repeat leaves."""
    rows, start, count = np.unique(block.rows, return_index=True, return_counts=True)
    own = block.columns[start[:, None] + (own_draws[rows] * count[:, None]).astype(np.int64)]
    ids = protocol.query_ids[block.queries[rows]]
    distances = block.distances[torch.from_numpy(rows)]
    device, ranks = distances.device, []
    for repeat, gallery in enumerate(galleries):
        other = torch.from_numpy(protocol.gallery_ids[gallery] != ids[:, None]).to(device)
        match = torch.from_numpy(own[:, repeat, None]).to(device)
        image = torch.from_numpy(gallery).to(device)
        away, matched = distances[:, image], distances.gather(1, match)
        ahead = (away < matched) | ((away == matched) & (image < match))
        ranks.append((ahead & other).sum(1).cpu().numpy() + 1)
    return np.stack(ranks)
