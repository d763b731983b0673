"""k-reciprocal re-ranking (Zhong et al. 2017, arXiv 1701.08398), sparse and in blocks.

As published accuracies are made: squared distances are squared once more before each row is divided by its
maximum, so the weights and the final mix use the fourth power of the Euclidean distance.

Shape letters: Q queries (q of them in a block), G gallery images, N = Q + G, k = k1 + 1 neighbours of an
image, itself among them, h = round(k1 / 2) + 1 of its nearest ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.evaluation.distances import ArrayLike, Distances, Metric
from autoreid.evaluation.protocol import Ints, ranges

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]

#: Pairs of features multiplied, and pairs of sparse values compared, at once.
PAIRS_AT_ONCE = 2048
VALUES_AT_ONCE = 500_000


def rerank(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    k1: int = 20,
    k2: int = 6,
    lambda_: float = 0.3,
    metric: Metric = "euclidean",
) -> Reranked:
    """Re-ranked distances of queries to gallery images, made block by block when iterated over.

    Args:
        query_features: (Q, D).
        gallery_features: (G, D), on the same device.
        k1: neighbours among which two images must find each other.
        k2: nearest images whose encodings are averaged; 1 leaves them as they are.
        lambda_: weight of the original distance beside the Jaccard distance.
        metric: "euclidean" or "cosine", of the original distance.

    Raises:
        ValueError: shapes do not fit together, or a parameter is out of its range.
        RunError: features are not all finite.
    """
    if k1 < 1 or k2 < 1 or not 0 <= lambda_ <= 1:
        raise ValueError(f"k1={k1}, k2={k2}, lambda_={lambda_}: k1 and k2 are at least 1, lambda_ in [0, 1]")
    between = Distances(query_features, gallery_features, metric)
    images = torch.cat([between.query, between.gallery])
    among = Distances(images, images, metric)
    neighbours, largest = _neighbours(among, max(k1 + 1, k2))
    encoding = _encode(among, neighbours[:, : k1 + 1], largest, round(k1 / 2) + 1)
    if k2 > 1:
        encoding = _mean_of_neighbours(encoding, neighbours[:, :k2])
    return Reranked(between, encoding, largest, lambda_)


@dataclass(frozen=True)
class SparseRows:
    """Sparse rows end to end: row n holds `values` in `columns` from start[n] on, count[n] of them."""

    start: Ints
    count: Ints
    columns: npt.NDArray[np.int32]
    values: Floats

    @classmethod
    def of(
        cls, owner: Integers, columns: Integers, values: npt.NDArray[np.floating], rows: int
    ) -> SparseRows:
        """From entries whose owning rows ascend."""
        count = np.bincount(owner, minlength=rows)
        return cls(np.cumsum(count) - count, count, columns.astype(np.int32), values.astype(np.float32))

    def transposed(self, first: int, columns: int) -> SparseRows:
        """Column c as row c; of the rows from `first` on, counted from there."""
        owner = np.repeat(np.arange(len(self.count) - first, dtype=np.int32), self.count[first:])
        kept = slice(len(self.columns) - len(owner), None)
        order = np.argsort(self.columns[kept], kind="stable")
        return SparseRows.of(self.columns[kept][order], owner[order], self.values[kept][order], columns)


class Reranked:
    """Re-ranked distances of Q queries to G gallery images: iterate over their blocks, or take `full()`.

    Attributes:
        shape: (Q, G).
    """

    def __init__(self, between: Distances, encoding: SparseRows, largest: Tensor, lambda_: float) -> None:
        self.shape = between.shape
        self._between, self._encoding, self._largest, self._lambda = between, encoding, largest, lambda_
        Q, G = self.shape
        #: (column of the encoding) -> gallery images that have it
        self._holders = encoding.transposed(Q, Q + G)

    def __iter__(self) -> Iterator[Tensor]:
        """(q, G) float32 blocks in the order of the queries, on the features' device; gone with the next."""
        start = 0
        for block in self._between.blocks():
            stop = start + len(block)
            block.square_().div_(self._largest[start:stop, None]).mul_(self._lambda)
            jaccard = torch.from_numpy(self._jaccard(start, stop)).to(block.device)
            yield block.add_(jaccard, alpha=1 - self._lambda)
            start = stop

    def full(self) -> Tensor:
        """(Q, G), all at once."""
        result = self._between.query.new_empty(self.shape)
        start = 0
        for block in self:
            result[start : start + len(block)] = block
            start += len(block)
        return result

    def _jaccard(self, start: int, stop: int) -> Floats:
        """(q, G) Jaccard distances of the queries from `start` to `stop`, eq. 10 of the paper."""
        row, entries = ranges(self._encoding.start[start:stop], self._encoding.count[start:stop])
        columns, G = self._encoding.columns[entries], self.shape[1]
        overlaps = np.bincount(row, self._holders.count[columns], stop - start)
        result = np.empty((stop - start, G), np.float32)
        for rows in _chunks(overlaps + G, VALUES_AT_ONCE):
            part = slice(*row.searchsorted([rows.start, rows.stop]))
            owner, held = ranges(self._holders.start[columns[part]], self._holders.count[columns[part]])
            smaller = np.minimum(self._encoding.values[entries[part]][owner], self._holders.values[held])
            place = (row[part] - rows.start)[owner] * G + self._holders.columns[held]
            size = rows.stop - rows.start
            # Every encoding adds up to 1, so the larger ones of each pair add up to 2 - shared.
            shared = np.bincount(place, smaller, size * G).reshape(size, G)
            result[rows] = 1 - shared / (2 - shared)
        return result


def _neighbours(among: Distances, k: int) -> tuple[npt.NDArray[np.int32], Tensor]:
    """(N, k) nearest images of every image, nearest first, and (N,) its largest squared distance.

    Equal distances keep the images' order, as a stable sort of all would. Only the result leaves the device, at once.
    """
    N, device = among.shape[1], among.query.device
    size, start = min(k, N), 0
    # Made at once: small results kept between large temporaries would keep their memory from being used again.
    found, largest = among.query.new_empty(N, size, dtype=torch.int32), among.query.new_empty(N)
    keys = torch.arange(N, device=device).repeat(min(N, among.block_rows), 1)
    for block in among.blocks():
        rows = slice(start, start := start + len(block))
        largest[rows] = block.square_().amax(1).clamp_min(torch.finfo(block.dtype).tiny)
        found[rows] = _nearest(block.div_(largest[rows, None]), keys[: len(block)], size)
    return found.cpu().numpy(), largest


def _nearest(block: Tensor, keys: Tensor, size: int) -> Tensor:
    """(q, size) columns of the smallest of (q, N) float32 numbers, none below 0, in the order of a stable sort.

    Args:
        keys: (q, N) int64, in each row 0 to N - 1 in the lower halves; the upper ones are overwritten.
    """
    # The bits of such numbers order as the numbers do; with the column below them, no two keys are equal.
    upper = keys.view(torch.int32)[:, 1::2]  # on little-endian machines
    upper.copy_(block.view(torch.int32))
    return keys.topk(size, largest=False).values.bitwise_and_(2**32 - 1)


def _reciprocal(neighbours: npt.NDArray[np.int32], rows: slice) -> npt.NDArray[np.bool_]:
    """(n, k) which neighbours of the rows' images have these among their own neighbours."""
    own = np.arange(rows.start, rows.stop, dtype=np.int32)
    return (neighbours[neighbours[rows]] == own[:, None, None]).any(2)


def _encode(among: Distances, neighbours: npt.NDArray[np.int32], largest: Tensor, h: int) -> SparseRows:
    """(N, N) weights of every image's expanded k-reciprocal neighbours; rows add up to 1 (eq. 7).

    The k-reciprocal neighbours of image i, R(i, k), are joined by R(c, h) of every c among them if more than
    two thirds of R(c, h) are in R(i, k) (eq. 4).
    """
    N, k = neighbours.shape
    nearest = neighbours[:, :h]
    chunks = list(_chunks(np.full(N, k * k * h), VALUES_AT_ONCE))
    nearest_reciprocal = np.concatenate([_reciprocal(nearest, rows) for rows in chunks])
    # -1 stands for no neighbour: in a row of `members` ...
    candidates = np.where(nearest_reciprocal, nearest, -1)
    owners, columns = [], []
    for rows in chunks:
        own = neighbours[rows]
        reciprocal = _reciprocal(neighbours, rows)
        theirs = candidates[own]
        # ... and -2, so that the two are never found equal.
        wanted = np.where(reciprocal, own, -2)
        shared = (theirs[..., None] == wanted[:, None, None, :]).any(3).sum(2)
        joins = reciprocal & (shared > 2 / 3 * (theirs >= 0).sum(2))
        joining = np.where(joins[..., None], theirs, -1).reshape(len(own), -1)
        members = np.sort(np.concatenate([np.where(reciprocal, own, -1), joining], axis=1), axis=1)
        first = np.diff(members, axis=1, prepend=-1) > 0
        owners.append(np.nonzero(first)[0] + rows.start)
        columns.append(members[first])
    owner, column = np.concatenate(owners), np.concatenate(columns)
    weights = _weights(among, owner, column, largest)
    total = np.bincount(owner, weights, N)
    return SparseRows.of(owner, column, weights / total[owner], N)


def _weights(among: Distances, rows: Ints, columns: npt.NDArray[np.int32], largest: Tensor) -> Floats:
    """(n,) exp(-distance) of pairs of images, the distance squared and divided by its row's largest."""
    row, column = (torch.from_numpy(x).to(largest.device) for x in (rows, columns))
    weights = largest.new_empty(len(rows))  # made at once, as in `_neighbours`
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        distance = among.pairs(row[part], column[part]).square() / largest[row[part]]
        torch.exp(-distance, out=weights[part])
    return weights.cpu().numpy()


def _mean_of_neighbours(encoding: SparseRows, neighbours: npt.NDArray[np.int32]) -> SparseRows:
    """(N, N) mean encoding of every image's k2 nearest images (local query expansion, eq. 11)."""
    N, k2 = neighbours.shape
    owners, columns, values = [], [], []
    for rows in _chunks(encoding.count[neighbours].sum(1), VALUES_AT_ONCE):
        near = neighbours[rows].ravel()
        source, entries = ranges(encoding.start[near], encoding.count[near])
        key = (source // k2) * N + encoding.columns[entries]
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        owner, column = np.divmod(key[first], N)
        owners.append(owner + rows.start)
        columns.append(column.astype(np.int32))
        values.append(np.add.reduceat(encoding.values[entries[order]], first) / np.float32(k2))
    return SparseRows.of(np.concatenate(owners), np.concatenate(columns), np.concatenate(values), N)


def _chunks(work: npt.NDArray[np.number], limit: int) -> Iterator[slice]:
    """Consecutive rows whose work adds up to at most `limit`, or single rows that have more."""
    total = np.cumsum(work)
    start = 0
    while start < len(work):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(total.searchsorted(done + limit, side="right")))
        yield slice(start, stop)
        start = stop
