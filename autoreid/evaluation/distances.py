"""Distances between two sets of features, computed in blocks of rows.

Shape letters: Q queries (q of them in a block), G gallery images, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.config import Metric
from autoreid.errors import DivergedError

ArrayLike = Tensor | npt.NDArray[np.generic]

#: Number of distances in a block (16 MB), ...
BLOCK_ELEMENTS = 4_000_000
#: ... unless that is fewer rows than an efficient matrix product needs.
MIN_BLOCK_ROWS = 96
#: Number of gallery images per matrix product.
GALLERY_PIECE = 16_384


class Distances:
    """Float32 distances between Q query and G gallery features, computed on demand.

    Distances are squared Euclidean, |q|² + |g|² - 2 q·g, or one minus the cosine similarity.

    Args:
        query: (Q, D) features; float32 features are not copied unless the metric is "cosine".
        gallery: (G, D) features, on the same device.
        metric: "euclidean" or "cosine".

    Raises:
        ValueError: the shapes do not match, or the metric is unknown.
        DivergedError: a feature is NaN or infinite.
    """

    def __init__(self, query: ArrayLike, gallery: ArrayLike, metric: Metric = "euclidean") -> None:
        if metric not in get_args(Metric):
            raise ValueError(f"unknown metric {metric!r}: must be 'euclidean' or 'cosine'")
        self.query, self.gallery = (torch.as_tensor(x).detach().float() for x in (query, gallery))
        if self.query.ndim != 2 or self.gallery.ndim != 2 or self.query.shape[1] != self.gallery.shape[1]:
            shapes = f"{tuple(query.shape)} and {tuple(gallery.shape)}"
            raise ValueError(f"query and gallery features are {shapes}: must be (Q, D) and (G, D)")
        self.metric = metric
        self.query_squares, self.gallery_squares = _squares(self.query), _squares(self.gallery)
        _check_finite(self.query_squares, self.gallery_squares)
        if metric == "cosine":
            self.query, self.gallery = F.normalize(self.query), F.normalize(self.gallery)

    @property
    def shape(self) -> tuple[int, int]:
        """(Q, G)"""
        return len(self.query), len(self.gallery)

    @property
    def block_rows(self) -> int:
        """Number of rows in a block; the last block may have fewer."""
        return max(MIN_BLOCK_ROWS, BLOCK_ELEMENTS // max(1, len(self.gallery)))

    def blocks(self) -> Iterator[Tensor]:
        """Yield (q, G) blocks in query order; callers may modify a block, and the next one overwrites it."""
        Q, G = self.shape
        buffer = self.query.new_empty(min(Q, self.block_rows), G)
        for start in range(0, Q, self.block_rows):
            rows = slice(start, min(Q, start + self.block_rows))
            out = buffer[: rows.stop - start]
            # In pieces, because a matrix product copies its operands.
            for first in range(0, G, GALLERY_PIECE):
                self._fill(out[:, first : first + GALLERY_PIECE], rows, slice(first, first + GALLERY_PIECE))
            yield out

    def _fill(self, out: Tensor, rows: slice, columns: slice) -> None:
        """Write the distances of some queries to some gallery images to `out`."""
        products = (self.query[rows], self.gallery[columns].T)
        if self.metric == "euclidean":
            torch.add(self.query_squares[rows, None], self.gallery_squares[columns], out=out)
            out.addmm_(*products, alpha=-2)
        else:
            torch.mm(*products, out=out).neg_().add_(1)

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the (n,) distances of queries `rows` to gallery images `columns`; copies n rows of both."""
        products = torch.einsum("nd,nd->n", self.query[rows], self.gallery[columns])
        if self.metric == "euclidean":
            return self.query_squares[rows] + self.gallery_squares[columns] - 2 * products
        return 1 - products


def nearest(block: Tensor, keys: Tensor, size: int) -> Tensor:
    """Return the (q, size) columns of the smallest of (q, N) non-negative float32 numbers, stably sorted.

    Args:
        keys: (q, N) int64; the lower halves of each row are 0 to N - 1, the upper halves are overwritten.
    """
    # Non-negative floats sort like their bits; with the column in the lower half, all keys are distinct.
    upper = keys.view(torch.int32)[:, 1::2]  # on little-endian machines
    upper.copy_(block.view(torch.int32))
    return keys.topk(size, largest=False).values.bitwise_and_(2**32 - 1)


def _squares(features: Tensor) -> Tensor:
    """Return (N,) squared norms, computed in pieces because a gallery may fill half of the memory."""
    squares = features.new_empty(len(features))
    for start in range(0, len(features), 4096):
        piece = features[start : start + 4096]
        # Written to `out`: small results allocated between large temporaries would fragment the memory.
        torch.sum(piece.square(), dim=1, out=squares[start : start + 4096])
    return squares


def _check_finite(query_squares: Tensor, gallery_squares: Tensor) -> None:
    """Raise DivergedError if a feature is not finite, or if its square overflows."""
    sides = {"query": query_squares, "gallery": gallery_squares}
    bad = {side: int((~squares.isfinite()).sum()) for side, squares in sides.items()}
    if any(bad.values()):
        counts = " and ".join(f"{count} {side} rows" for side, count in bad.items() if count)
        raise DivergedError(f"features contain NaN or infinity in {counts}; they cannot be ranked")
