"""Which gallery images match a query, and which are ignored for it.

Shape letters: Q queries, G gallery images.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from autoreid.data.records import JUNK
from autoreid.evaluation.distances import ArrayLike

Ints = npt.NDArray[np.int64]


class Protocol:
    """The single-query protocol of Market-1501 for (Q,) and (G,) integer identities and cameras.

    A match has the query's identity and a different camera. Gallery images with the query's identity and
    camera are removed; those with identity JUNK are removed for every query.

    Args:
        keep_same_camera: images with the query's identity and camera are matches, too.
        own: gallery index of each query's own image (Q,), which is removed for it; -1 if the gallery lacks it. None if
            the gallery lacks all.

    Attributes:
        shape: (Q, G).
        junk: gallery images with identity JUNK.
        by_identity: all other gallery images, sorted by identity, then by gallery index.
        identities: the identities of `by_identity`.
    """

    def __init__(
        self,
        query_ids: ArrayLike,
        gallery_ids: ArrayLike,
        query_cameras: ArrayLike,
        gallery_cameras: ArrayLike,
        keep_same_camera: bool = False,
        own: ArrayLike | None = None,
    ) -> None:
        self.query_ids, self.gallery_ids = _integers(query_ids), _integers(gallery_ids)
        self.query_cameras, self.gallery_cameras = _integers(query_cameras), _integers(gallery_cameras)
        self.shape = (len(self.query_ids), len(self.gallery_ids))
        self.check(self.shape)
        self.keep_same_camera = keep_same_camera
        self.own = np.full(self.shape[0], -1) if own is None else _integers(own)
        self.junk = np.flatnonzero(self.gallery_ids == JUNK)
        order = np.argsort(self.gallery_ids, kind="stable")
        self.by_identity = order[self.gallery_ids[order] != JUNK]
        self.identities = self.gallery_ids[self.by_identity]

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the identities or cameras do not match distances of this shape."""
        shapes = [
            x.shape for x in (self.query_ids, self.query_cameras, self.gallery_ids, self.gallery_cameras)
        ]
        if len(shape) != 2 or shapes != [(shape[0],)] * 2 + [(shape[1],)] * 2:
            raise ValueError(
                f"query ids, query cameras, gallery ids, gallery cameras have shapes {shapes}: "
                f"must be (Q,), (Q,), (G,), (G,) of distances (Q, G) = {shape}"
            )

    def pairs(self, queries: Ints) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
        """Return the matches and the removed images of some queries, each as (rows, gallery images).

        Row n stands for queries[n]. Rows ascend, and within a row the gallery images ascend.
        """
        ids = self.query_ids[queries]
        start, stop = (self.identities.searchsorted(ids, side=side) for side in ("left", "right"))
        rows, places = ranges(start, stop - start)
        columns = self.by_identity[places]
        removed = self.own[queries][rows] == columns
        if not self.keep_same_camera:
            removed |= self.query_cameras[queries][rows] == self.gallery_cameras[columns]
        return (rows[~removed], columns[~removed]), (rows[removed], columns[removed])


def own_images(query: Iterable[str], gallery: Iterable[str]) -> Ints:
    """Return the gallery index of each query's own image (Q,), by path; -1 if it has none or its path is empty."""
    places = {path: place for place, path in enumerate(gallery) if path}
    return np.array([places.get(path, -1) for path in query], dtype=np.int64)


def ranges(start: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Concatenate the ranges start[n], ..., start[n] + count[n] - 1; returns the n of each entry first."""
    owner = np.repeat(np.arange(len(start)), count)
    return owner, np.arange(len(owner)) + (start - (np.cumsum(count) - count))[owner]


def _integers(values: ArrayLike) -> Ints:
    return torch.as_tensor(values).cpu().numpy().astype(np.int64)
