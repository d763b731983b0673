"""What is known of a published data set: where it lies, who reads it, and how many images it must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split


class Counts(NamedTuple):
    """The size of a split, without junk; distractors are images, but nobody's. None where nothing is published."""

    identities: int
    images: int
    cameras: int | None = None

    @classmethod
    def of(cls, split: Split) -> Counts:
        """Counted."""
        people = np.setdiff1d(split.identities, (DISTRACTOR, JUNK))
        return cls(len(people), len(split), len(np.unique(split.cameras)))


@dataclass(frozen=True)
class Benchmark:
    """A published data set.

    Attributes:
        folders: names of the folder where it lies, below the one that holds data sets; the first is its own.
        read: reads that folder; opens no image.
        published: the sizes that its authors publish, by split: train, query and gallery.
        lay_out: of a folder that holds what the authors' archives do, makes another one that `read` knows;
            makes none if it knows the first. None where that is always so.
    """

    folders: tuple[str, ...]
    read: Callable[[Path], ReidDataset]
    published: Mapping[str, Counts]
    lay_out: Callable[[Path, Path], None] | None = None

    def differences(self, dataset: ReidDataset) -> list[str]:
        """How the sizes differ from those published, such as "12,935 train images, not 12,936"."""
        return [
            f"{found:,} {split} {what}, not {expected:,}"
            for split, published in self.published.items()
            for what, found, expected in zip(
                Counts._fields, Counts.of(getattr(dataset, split)), published, strict=True
            )
            if expected is not None and found != expected
        ]
