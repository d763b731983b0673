"""What every data set is read into: parallel arrays, one entry an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: Identity of gallery images that show none of the benchmark's people (Market-1501 calls them 0000).
DISTRACTOR = 0
#: Identity of images that must not influence a ranking (Market-1501 calls them -1).
JUNK = -1


@dataclass(frozen=True)
class Split:
    """The images of one part of a data set.

    Attributes:
        name: what messages call it, such as "train" or "query".
        paths: (N,) file names, as an array of str objects.
        identities: (N,) int64, the data set's own numbers (not classifier labels).
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
        """How many different people the images show."""
        return len(np.unique(self.identities))

    def select(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_], name: str | None = None) -> Split:
        """The images at the chosen indices or mask, in that order."""
        return Split(name or self.name, self.paths[chosen], self.identities[chosen], self.cameras[chosen])


@dataclass(frozen=True)
class ReidDataset:
    """A benchmark: images to train on, queries, and the gallery they are ranked against.

    A number stands for the same person in all three. A data set may have nothing to train on, or no queries.

    Attributes:
        notes: what its user should hear of, a line each.
    """

    name: str
    train: Split
    query: Split
    gallery: Split
    notes: tuple[str, ...] = ()

    def all_people(self) -> Split:
        """All images that show one of the data set's people, as images to train on."""
        everything = join([self.train, self.query, self.gallery], self.train.name)
        return everything.select(~np.isin(everything.identities, (DISTRACTOR, JUNK)))


def join(splits: Sequence[Split], name: str) -> Split:
    """The images of several splits of the same data set, one after the other."""
    return Split(
        name,
        np.concatenate([split.paths for split in splits]),
        np.concatenate([split.identities for split in splits]),
        np.concatenate([split.cameras for split in splits]),
    )


def combine(splits: Sequence[Split]) -> Split:
    """The images of several data sets as one split, in which no two share an identity or a camera.

    The first keeps its numbers; those of each further one begin after the last so far. Distractors and junk stay
    what they are.
    """
    parts: list[Split] = []
    people = cameras = 0
    for split in splits:
        nobody = np.isin(split.identities, (DISTRACTOR, JUNK))
        identities = np.where(nobody, split.identities, split.identities + people)
        parts.append(Split(split.name, split.paths, identities, split.cameras + cameras))
        people = max(people, int(identities.max(initial=0)))
        cameras = int(parts[-1].cameras.max(initial=cameras - 1)) + 1
    return join(parts, " + ".join(dict.fromkeys(split.name for split in splits)))
