"""What is known of a published data set: where it lies, who reads it, and how many images it must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split


class Counts(NamedTuple):
    """The size of a split, without junk; distractors are images, but nobody's."""

    identities: int
    images: int
    cameras: int

    @classmethod
    def of(cls, split: Split) -> Counts:
        """Counted."""
        people = np.setdiff1d(split.identities, (DISTRACTOR, JUNK))
        return cls(len(people), len(split), len(np.unique(split.cameras)))


class Benchmark(NamedTuple):
    """A published data set.

    Attributes:
        folder: where it lies below the folder that holds data sets.
        read: reads that folder.
        published: the sizes that its authors publish, by split: train, query and gallery.
    """

    folder: str
    read: Callable[[Path], ReidDataset]
    published: Mapping[str, Counts]

    def differences(self, dataset: ReidDataset) -> list[str]:
        """How the sizes differ from those published, such as "12,935 train images, not 12,936"."""
        return [
            f"{found:,} {split} {what}, not {expected:,}"
            for split, published in self.published.items()
            for what, found, expected in zip(
                Counts._fields, Counts.of(getattr(dataset, split)), published, strict=True
            )
            if found != expected
        ]
