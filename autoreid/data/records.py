"""The records of a data set: parallel arrays with one entry per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoreid.errors import DataError

#: Identity of gallery images that show none of the data set's people (0000 in Market-1501).
DISTRACTOR = 0
#: Identity of images that are ignored in a ranking (-1 in Market-1501).
JUNK = -1


@dataclass(frozen=True)
class Split:
    """The images of one part of a data set.

    Attributes:
        name: the name in messages, such as "train" or "query".
        paths: (N,) file names, an object array of str.
        identities: (N,) int64, numbered by the data set (not classifier labels).
        cameras: (N,) int64.
    """

    name: str
    paths: npt.NDArray[np.object_]
    identities: npt.NDArray[np.int64]
    cameras: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_identities(self) -> int:
        """Number of different identities."""
        return len(np.unique(self.identities))

    def select(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_], name: str | None = None) -> Split:
        """Return the images at the chosen indices or mask, in that order."""
        return Split(name or self.name, self.paths[chosen], self.identities[chosen], self.cameras[chosen])


@dataclass(frozen=True)
class ReidDataset:
    """A data set: training images, queries, and the gallery that is ranked for them.

    An identity number means the same person in all three. The training set or the queries may be empty.

    Attributes:
        notes: warnings for the user, one line each.
    """

    name: str
    train: Split
    query: Split
    gallery: Split
    notes: tuple[str, ...] = ()

    def all_people(self) -> Split:
        """Return the images of all identities as one training split, without distractors and junk.

        An image that is query and gallery at once is there once.
        """
        queries = set(self.query.paths)
        new = np.array([path not in queries for path in self.gallery.paths], dtype=bool)
        everything = join([self.train, self.query, self.gallery.select(new)], self.train.name)
        return everything.select(~np.isin(everything.identities, (DISTRACTOR, JUNK)))


def sightings(
    identities: npt.NDArray[np.int64], cameras: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Group N images by identity and camera; the S groups are sorted by identity, then by camera.

    Returns:
        The first image of each group (S,), and the group of each image (N,).
    """
    pairs = np.stack([identities, cameras], axis=1)
    _, first, owner = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    return first, owner.ravel()  # numpy 2.0.0 returns (N, 1)


def join(splits: Sequence[Split], name: str) -> Split:
    """Concatenate splits of the same data set."""
    return Split(
        name,
        np.concatenate([split.paths for split in splits]),
        np.concatenate([split.identities for split in splits]),
        np.concatenate([split.cameras for split in splits]),
    )


def combine(splits: Sequence[Split]) -> Split:
    """Concatenate splits of different data sets, renumbered so that no two share an identity or a camera.

    The first split keeps its numbers; those of each further split start after the highest so far. Distractors
    and junk keep theirs.

    Raises:
        DataError: a number would not fit into 63 bits.
    """
    parts: list[Split] = []
    people = cameras = 0
    for split in splits:
        for what, numbers, offset in (
            ("identity", split.identities, people),
            ("camera", split.cameras, cameras),
        ):
            if int(numbers.max(initial=0)) + offset > np.iinfo(np.int64).max:
                raise DataError(
                    f"{split.paths[numbers.argmax()]}: the {what} number {numbers.max()} is too large to be joined "
                    f"with other data sets"
                )
        nobody = np.isin(split.identities, (DISTRACTOR, JUNK))
        identities = np.where(nobody, split.identities, split.identities + people)
        parts.append(Split(split.name, split.paths, identities, split.cameras + cameras))
        people = max(people, int(identities.max(initial=0)))
        cameras = int(parts[-1].cameras.max(initial=cameras - 1)) + 1
    return join(parts, " + ".join(dict.fromkeys(split.name for split in splits)))
