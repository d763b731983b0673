"""k-reciprocal re-ranking (Zhong et al. 2017, arXiv 1701.08398), sparse and in blocks.

To reproduce published accuracies, squared distances are squared once more before each row is divided by its
maximum, so the weights and the final distances use the fourth power of the Euclidean distance.

Shape letters: Q queries (q of them in a block), G gallery images, N = Q + G, k = k1 + 1 nearest images of an
image, including itself, h = round(k1 / 2) + 1 of the nearest ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoreid.config import Metric
from autoreid.evaluation.distances import ArrayLike, Distances, nearest
from autoreid.evaluation.protocol import Ints, ranges

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]

#: Number of feature pairs multiplied, and of sparse values compared, at a time.
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
    """Return the re-ranked distances of queries to gallery images; iteration computes them block by block.

    Args:
        query_features: (Q, D).
        gallery_features: (G, D), on the same device.
        k1: number of neighbours; two images are reciprocal if each is among the other's neighbours.
        k2: number of nearest images whose encodings are averaged; 1 disables the averaging.
        lambda_: weight of the original distance; the Jaccard distance has weight 1 - lambda_.
        metric: metric of the original distance, "euclidean" or "cosine".

    Raises:
        ValueError: the shapes do not match, or a parameter is out of range.
        RunError: a feature is NaN or infinite.
    """
    if k1 < 1 or k2 < 1 or not 0 <= lambda_ <= 1:
        raise ValueError(
            f"k1={k1}, k2={k2}, lambda_={lambda_}: k1 and k2 must be at least 1, lambda_ between 0 and 1"
        )
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
    """Concatenated sparse rows: row n has count[n] `values` in `columns`, beginning at start[n]."""

    start: Ints
    count: Ints
    columns: npt.NDArray[np.int32]
    values: Floats

    @classmethod
    def of(
        cls, owner: Integers, columns: Integers, values: npt.NDArray[np.floating], rows: int
    ) -> SparseRows:
        """Build from entries that are sorted by row; `owner` holds the row of each entry."""
        count = np.bincount(owner, minlength=rows)
        return cls(np.cumsum(count) - count, count, columns.astype(np.int32), values.astype(np.float32))

    def transposed(self, first: int, columns: int) -> SparseRows:
        """Transpose the rows from `first` on, numbered from 0; the result has `columns` rows."""
        owner = np.repeat(np.arange(len(self.count) - first, dtype=np.int32), self.count[first:])
        kept = slice(len(self.columns) - len(owner), None)
        order = np.argsort(self.columns[kept], kind="stable")
        return SparseRows.of(self.columns[kept][order], owner[order], self.values[kept][order], columns)


class Reranked:
    """Re-ranked distances of Q queries to G gallery images; iterate over it to compute blocks of rows.

    Attributes:
        shape: (Q, G).
    """

    def __init__(self, between: Distances, encoding: SparseRows, largest: Tensor, lambda_: float) -> None:
        self.shape = between.shape
        self._between, self._encoding, self._largest, self._lambda = between, encoding, largest, lambda_
        Q, G = self.shape
        #: column of the encoding -> the gallery images with a value there
        self._holders = encoding.transposed(Q, Q + G)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (q, G) float32 blocks in query order, on the features' device; the next overwrites a block."""
        start = 0
        for block in self._between.blocks():
            stop = start + len(block)
            block.square_().div_(self._largest[start:stop, None]).mul_(self._lambda)
            jaccard = torch.from_numpy(self._jaccard(start, stop)).to(block.device)
            yield block.add_(jaccard, alpha=1 - self._lambda)
            start = stop

    def _jaccard(self, start: int, stop: int) -> Floats:
        """Return the (q, G) Jaccard distances of queries `start` to `stop` (eq. 10 of the paper)."""
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
            # Each encoding sums to 1, so the elementwise maxima of a pair sum to 2 - shared.
            shared = np.bincount(place, smaller, size * G).reshape(size, G)
            result[rows] = 1 - shared / (2 - shared)
        return result


def _neighbours(among: Distances, k: int) -> tuple[npt.NDArray[np.int32], Tensor]:
    """Return (N, k) the nearest images of each image, nearest first, and (N,) its largest squared distance.

    Ties are broken by index, as in a stable sort. Only the final result is copied from the device, once.
    """
    N, device = among.shape[1], among.query.device
    size, start = min(k, N), 0
    # Allocated up front: small results allocated between large temporaries would fragment the memory.
    found, largest = among.query.new_empty(N, size, dtype=torch.int32), among.query.new_empty(N)
    keys = torch.arange(N, device=device).repeat(min(N, among.block_rows), 1)
    for block in among.blocks():
        rows = slice(start, start := start + len(block))
        largest[rows] = block.square_().amax(1).clamp_min(torch.finfo(block.dtype).tiny)
        found[rows] = nearest(block.div_(largest[rows, None]), keys[: len(block)], size)
    return found.cpu().numpy(), largest


def _reciprocal(neighbours: npt.NDArray[np.int32], rows: slice) -> npt.NDArray[np.bool_]:
    """Return (n, k): whether each neighbour of a row's image has that image among its own neighbours."""
    own = np.arange(rows.start, rows.stop, dtype=np.int32)
    return (neighbours[neighbours[rows]] == own[:, None, None]).any(2)


def _encode(among: Distances, neighbours: npt.NDArray[np.int32], largest: Tensor, h: int) -> SparseRows:
    """Return (N, N) weights of each image's expanded k-reciprocal neighbours; rows sum to 1 (eq. 7).

    The k-reciprocal neighbours R(i, k) of image i are expanded by R(c, h) for each c in R(i, k) such that
    more than two thirds of R(c, h) are in R(i, k) (eq. 4).
    """
    N, k = neighbours.shape
    nearest = neighbours[:, :h]
    chunks = list(_chunks(np.full(N, k * k * h), VALUES_AT_ONCE))
    nearest_reciprocal = np.concatenate([_reciprocal(nearest, rows) for rows in chunks])
    # -1 means no neighbour in `candidates` and `members` ...
    candidates = np.where(nearest_reciprocal, nearest, -1)
    owners, columns = [], []
    for rows in chunks:
        own = neighbours[rows]
        reciprocal = _reciprocal(neighbours, rows)
        theirs = candidates[own]
        # ... and -2 in `wanted`, so that two missing neighbours never compare equal.
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
    """Return (n,) exp(-distance) of image pairs; the distance is squared and divided by its row's maximum."""
    row, column = (torch.from_numpy(x).to(largest.device) for x in (rows, columns))
    weights = largest.new_empty(len(rows))  # allocated up front, as in `_neighbours`
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        distance = among.pairs(row[part], column[part]).square() / largest[row[part]]
        torch.exp(-distance, out=weights[part])
    return weights.cpu().numpy()


def _mean_of_neighbours(encoding: SparseRows, neighbours: npt.NDArray[np.int32]) -> SparseRows:
    """Return (N, N) the mean encoding of each image's k2 nearest images (local query expansion, eq. 11)."""
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
    """Yield slices of consecutive rows whose work sums to at most `limit`, or single rows above it."""
    total = np.cumsum(work)
    start = 0
    while start < len(work):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(total.searchsorted(done + limit, side="right")))
        yield slice(start, stop)
        start = stop
