"""mAP, CMC and mINP of single-query retrieval.

A match's rank is one plus the number of gallery images that are closer, so only matches have to be ranked.
Distances are processed in blocks of queries; the whole matrix is never held in memory.

Shape letters: Q queries (q of them in a block), G gallery images, D embedding, m matches of one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.config import Metric
from autoreid.errors import DivergedError, RunError
from autoreid.evaluation.distances import BLOCK_ELEMENTS, ArrayLike, Distances
from autoreid.evaluation.protocol import Ints, Protocol

Floats = npt.NDArray[np.floating]

#: Many distances are not sorted but compared with those of each match, which is faster for up to COUNTED matches.
COUNTED_FROM = 2_000
COUNTED = 48


@dataclass(frozen=True)
class RetrievalResult:
    """The quality of a ranking, averaged over all queries that have a match.

    Attributes:
        map: mean average precision; a query's average is over its matches of (matches up to here / rank).
        cmc: rank k -> share of queries with a match among the first k images.
        minp: mean inverse negative penalty, matches / rank of the last match (arXiv 2001.04193, eq. 1).
        valid_queries: number of queries with at least one match in the gallery; only these are counted.
        queries: number of all queries.
        average_precision: (Q,) per query; NaN for queries without a match.
    """

    map: float
    cmc: dict[int, float]
    minp: float
    valid_queries: int
    queries: int
    average_precision: npt.NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Block:
    """The distances of a block of queries, and their matches sorted from near to far.

    Attributes:
        distances: (q, G).
        queries: (q,) indices of the queries.
        rows: (n,) row of each match's query in `distances`, ascending.
        columns: (n,) gallery index of each match.
        removed: rows and columns of the pairs that are ignored, without junk.
        junk: columns that are ignored in every row.
    """

    distances: Tensor
    queries: Ints
    rows: Ints
    columns: Ints
    removed: tuple[Ints, Ints]
    junk: Ints


def evaluate_retrieval(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    metric: Metric = "euclidean",
    ranks: Sequence[int] = (1, 5, 10, 20),
    keep_same_camera: bool = False,
    own: ArrayLike | None = None,
) -> RetrievalResult:
    """Rank the gallery for each query by Market-1501's protocol and compute mAP, CMC and mINP.

    Gallery images with the query's identity and camera, and those with identity JUNK, are removed; `keep_same_camera`
    keeps the former. If an image is query and gallery at once, `own` (Q,) has its gallery index, -1 for other queries:
    an image is never its own match.

    Distances are float32, squared Euclidean or one minus the cosine similarity; ties are broken by
    gallery order. The CMC at a rank beyond the end of the gallery is its value at the end.

    Features are (Q, D) and (G, D), identities and cameras (Q,) or (G,) integers; tensors may be on any
    device, if it is the same for all. `ranks` lists the ranks at which the CMC is reported.

    Raises:
        ValueError: the shapes do not match, or the metric is unknown.
        RunError: a feature is NaN or infinite, or no query has a match.
    """
    distances = Distances(query_features, gallery_features, metric)
    numbers = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    protocol = Protocol(*numbers, keep_same_camera, own)
    protocol.check(distances.shape)
    return evaluate_blocks(distances.blocks(), protocol, ranks)


def evaluate_distances(
    distances: ArrayLike | Iterable[ArrayLike],
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cameras: ArrayLike,
    gallery_cameras: ArrayLike,
    ranks: Sequence[int] = (1, 5, 10, 20),
    keep_same_camera: bool = False,
    own: ArrayLike | None = None,
) -> RetrievalResult:
    """Evaluate given distances: a (Q, G) matrix, or its blocks of rows in order, such as `rerank` yields.

    Otherwise the same as `evaluate_retrieval`.

    Raises:
        ValueError: the shapes do not match.
        RunError: a distance is NaN or infinite, or no query has a match.
    """
    numbers = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    protocol = Protocol(*numbers, keep_same_camera, own)
    if isinstance(distances, Tensor | np.ndarray):
        protocol.check(tuple(distances.shape))
        distances = torch.as_tensor(distances).split(max(1, BLOCK_ELEMENTS // max(1, distances.shape[1])))
    blocks = (torch.as_tensor(block).detach() for block in distances)
    return evaluate_blocks(blocks, protocol, ranks)


def match_blocks(blocks: Iterable[Tensor], protocol: Protocol) -> Iterator[Block]:
    """Yield the blocks of distances (q, G) with their matches.

    Raises:
        ValueError: a block is not (q, G), or the blocks do not have Q rows in total.
        DivergedError: a distance is not finite.
    """
    start = 0
    for distances in blocks:
        queries = np.arange(start, start := start + len(distances))
        if start > protocol.shape[0] or distances.ndim != 2 or distances.shape[1] != protocol.shape[1]:
            raise ValueError(
                f"distances {tuple(distances.shape)} up to query {start}: must be {protocol.shape}"
            )
        if distances.numel() and not all(bound.isfinite() for bound in distances.aminmax()):
            raise DivergedError(f"distances of queries {queries[0]} to {queries[-1]} contain NaN or infinity")
        (rows, columns), removed = protocol.pairs(queries)
        found = distances[torch.from_numpy(rows), torch.from_numpy(columns)].cpu().numpy()
        order = np.lexsort((found, rows))
        yield Block(distances, queries, rows[order], columns[order], removed, protocol.junk)
    if start != protocol.shape[0]:
        raise ValueError(f"distances of {start} queries: must be {protocol.shape}")


def evaluate_blocks(blocks: Iterable[Tensor], protocol: Protocol, ranks: Sequence[int]) -> RetrievalResult:
    """Compute mAP, CMC and mINP over blocks of distances (q, G), which have all queries in order.

    Raises:
        ValueError: the shapes do not match.
        RunError: a distance is NaN or infinite, or no query has a match.
    """
    # Rows: average precision, rank of the first match, inverse negative penalty; NaN without a match.
    per_query = np.full((3, protocol.shape[0]), np.nan)
    for block in match_blocks(blocks, protocol):
        if len(block.rows):
            valid, starts, total = np.unique(block.rows, return_index=True, return_counts=True)
            rank = match_ranks(block)
            found = np.arange(1, len(rank) + 1) - np.repeat(starts, total)
            precision = np.add.reduceat(found / rank, starts) / total
            penalty = total / rank[starts + total - 1]
            per_query[:, block.queries[valid]] = precision, rank[starts], penalty
    precision, first, penalty = per_query[:, ~np.isnan(per_query[0])]
    if not len(first):
        where = "" if protocol.keep_same_camera else " from another camera"
        raise RunError(f"none of the {protocol.shape[0]} queries has a gallery image of its identity{where}")
    cmc = {rank: float(np.mean(first <= rank)) for rank in ranks}
    map_, minp = float(precision.mean()), float(penalty.mean())
    return RetrievalResult(map_, cmc, minp, len(first), protocol.shape[0], per_query[0])


def match_ranks(block: Block) -> Ints:
    """Return the (n,) rank of each match, counted from 1; ties are broken by gallery order."""
    if block.distances.device.type != "cpu":
        return _ranks_on_device(block)
    distances = block.distances.numpy()
    rows = np.unique(block.rows)
    matches = _parts(block.rows, block.columns, rows)
    ignored = [np.concatenate([block.junk, columns]) for columns in _parts(*block.removed, rows)]
    every = zip(rows, matches, ignored, strict=True)
    return np.concatenate([_ranks_in(distances[row], *rest) for row, *rest in every])


def _parts(rows: Ints, columns: Ints, wanted: Ints) -> list[Ints]:
    """Return the columns that belong to each wanted row; `rows` ascend."""
    bounds = zip(rows.searchsorted(wanted), rows.searchsorted(wanted, side="right"), strict=True)
    return [columns[start:stop] for start, stop in bounds]


def _ranks_in(row: Floats, columns: Ints, ignored: Ints) -> Ints:
    """Return the (m,) ranks of `columns`, sorted from near to far, in the (G,) distances of their query."""
    distances = row[columns]
    near = row <= distances[-1]
    near[ignored] = False
    nearby = row[near]
    if len(nearby) > COUNTED_FROM and len(columns) <= COUNTED:
        ahead = np.array([np.count_nonzero(nearby < distance) for distance in distances])
        equal = np.array([np.count_nonzero(nearby == distance) for distance in distances])
    else:
        nearby.sort()
        ahead = nearby.searchsorted(distances)
        equal = nearby.searchsorted(distances, side="right") - ahead
    for tied in np.flatnonzero(equal > 1):
        before = slice(columns[tied])
        ahead[tied] += np.count_nonzero(near[before] & (row[before] == distances[tied]))
    return ahead + 1


def _ranks_on_device(block: Block) -> Ints:
    """Compute `match_ranks` by comparing each match with its whole row, many matches at a time."""
    G, device = block.distances.shape[1], block.distances.device
    counted = block.distances.clone()
    counted[:, torch.from_numpy(block.junk)] = torch.inf
    counted[tuple(torch.from_numpy(x) for x in block.removed)] = torch.inf
    place = torch.arange(G, device=device)
    size = max(1, BLOCK_ELEMENTS // G)
    ranks = []
    for start in range(0, len(block.rows), size):
        part = slice(start, start + size)
        columns = torch.from_numpy(block.columns[part]).to(device)[:, None]
        distances = counted[torch.from_numpy(block.rows[part])]
        match = distances.gather(1, columns)
        ahead = (distances < match) | ((distances == match) & (place < columns))
        ranks.append(ahead.sum(1) + 1)
    return torch.cat(ranks).cpu().numpy()
