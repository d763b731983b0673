"""What is known about a published data set: its folder, its reader and its published size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split


class Counts(NamedTuple):
    """The size of a split, without junk; distractors count as images only. None if no number is published."""

    identities: int
    images: int
    cameras: int | None = None

    @classmethod
    def of(cls, split: Split) -> Counts:
        """Count a split."""
        people = np.setdiff1d(split.identities, (DISTRACTOR, JUNK))
        return cls(len(people), len(split), len(np.unique(split.cameras)))


@dataclass(frozen=True)
class Benchmark:
    """A published data set.

    Attributes:
        folders: possible names of its folder below `data.root`; the first one is preferred.
        read: reads the folder; opens no image.
        published: the published sizes by split: train, query and gallery.
        lay_out: lay_out(unpacked, target) converts the contents of the authors' archives to the layout that `read`
            knows. It creates no target if they already have it. None if they always have it.
        people: a name that data sets have in common if their identity numbers mean the same people.
    """

    folders: tuple[str, ...]
    read: Callable[[Path], ReidDataset]
    published: Mapping[str, Counts]
    lay_out: Callable[[Path, Path], None] | None = None
    people: str = ""

    def differences(self, dataset: ReidDataset) -> list[str]:
        """Return the differences from the published sizes, such as "12,935 train images, not 12,936"."""
        return [
            f"{found:,} {split} {what}, not {expected:,}"
            for split, published in self.published.items()
            for what, found, expected in zip(
                Counts._fields, Counts.of(getattr(dataset, split)), published, strict=True
            )
            if expected is not None and found != expected
        ]
