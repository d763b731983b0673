"""The interface of the mirrors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoreid.mirrors.content import RunContent


class Point(NamedTuple):
    """What belongs to one step of a run.

    Attributes:
        step: number of completed steps.
        values: the metrics by name.
        pictures: files of pictures by name.
    """

    step: int
    values: Mapping[str, float]
    pictures: Mapping[str, Path]


class Update(NamedTuple):
    """What a mirror lacks of a run.

    Attributes:
        points: in the order of their steps.
        result: the values of result.json by dotted key; empty while the run has not finished.
        step: the step at which the result belongs, the last one of the run.
        time: when the update began, in seconds since the Unix epoch. A repeated update has the time of the first try.
    """

    points: Sequence[Point]
    result: Mapping[str, Any]
    step: int
    time: float


class Mirror(ABC):
    """Writes runs to the store of a tracker.

    Attributes:
        destination: where it writes; a run has one id for each destination.
    """

    destination: str

    @abstractmethod
    def create(self, run: RunContent) -> str:
        """Create a run in the store, and return its id there."""

    @abstractmethod
    def write(self, run_id: str, run: RunContent, update: Update) -> None:
        """Add to a run in the store."""
