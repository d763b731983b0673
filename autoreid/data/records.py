"""What every data set is read into: parallel arrays, one entry an image."""

from __future__ import annotations

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
    """A benchmark: images to train on, queries, and the gallery they are ranked against."""

    name: str
    train: Split
    query: Split
    gallery: Split
