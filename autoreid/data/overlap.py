"""Finds images and people that data sets share although their names differ.

People are compared by number, within a data set and between published ones that number the same people alike. Images
are compared by content, so copies, links and renamed data sets are found, but not images that were encoded again. Up
to SAMPLE images of a data set, evenly spaced, are compared with all of another, because data sets usually share many
images or none.
"""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from autoreid.data.cache import cores
from autoreid.data.datasets import BENCHMARKS
from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split, join
from autoreid.errors import DataError

#: Number of images that are compared; if 2 % of the images are shared, one of them is found with a probability of 99 %.
SAMPLE = 256
#: Number of bytes from the middle of a file by which files of equal size are told apart before all bytes are compared.
_PIECE = 4096
#: Number of files that a thread reads at a time.
_CHUNK = 256

Result = TypeVar("Result")


def check_overlap(
    sources: Sequence[tuple[str, Split]], targets: Sequence[ReidDataset]
) -> dict[str, tuple[str, ...]]:
    """Check that no two sources show the same people, and that no target shows people who are trained on.

    Args:
        sources: the training images of each source, with its name.
        targets: the data sets for evaluation.

    Returns:
        Warnings by the name of the target, about its own training images.

    Raises:
        DataError: data sets with different names share images or people; the message names both and an example.
    """
    contents = {name: _Contents(split.paths.tolist()) for name, split in sources}
    for (name, _), (other, other_split) in combinations(sources, 2):
        if _numbering(name) == _numbering(other):
            raise DataError(f"{name} and {other} {_TWICE}")
        twins = contents[name].twins(_sample(other_split))
        if twins:
            raise DataError(
                f"{name} and {other} {_TWICE}; {twins[0][1]} and {twins[0][0]} are the same image"
            )
    notes: dict[str, tuple[str, ...]] = {}
    for target in targets:
        notes[target.name] = ()
        for name, split in sources:
            found = _seen_people(split, name, contents[name], target)
            if found and name != target.name:
                raise DataError(f"{found[0]}; choose other data sets in data.sources or data.targets")
            notes[target.name] += found
    return notes


def seen_people(sources: Sequence[tuple[str, Split]], targets: Sequence[ReidDataset]) -> list[str]:
    """Return a warning for each target that shows people who are trained on; arguments as in `check_overlap`."""
    contents = {name: _Contents(split.paths.tolist()) for name, split in sources}
    return [
        note
        for target in targets
        for name, split in sources
        for note in _seen_people(split, name, contents[name], target)
    ]


def _seen_people(train: Split, source: str, content: _Contents, target: ReidDataset) -> tuple[str, ...]:
    test = join([target.query, target.gallery], target.name)
    return (*_people_in(train, source, test), *_images_in(content, source, test))


def copied_queries(target: ReidDataset) -> tuple[str, ...]:
    """Return a warning if queries are gallery images under another name, which count as matches of the same camera."""
    sample = _sample(target.query)
    twins = _Contents(target.gallery.paths.tolist()).twins(sample)
    if not twins:
        return ()
    return (
        f"{target.name}: of {len(sample)} queries that were compared, {len(twins)} are also gallery images under "
        f"another name, such as {twins[0][0]} and {twins[0][1]}; they count as their own matches, so results are too "
        f"good; list each such image in images.csv as query and as gallery instead",
    )


_TWICE = "show the same people, who would be trained as different identities: train on one of them"


def _people_in(train: Split, source: str, test: Split) -> list[str]:
    """Say how many people of a test set are trained on, if both data sets number them alike."""
    if not _number_alike(source, train, test):
        return []
    people = np.setdiff1d(test.identities, (DISTRACTOR, JUNK))
    seen = np.intersect1d(people, train.identities)
    if not len(seen):
        return []
    path = test.paths[np.isin(test.identities, seen).argmax()]
    return [
        f"{test.name}: {len(seen)} of its {len(people)} people are also trained on in {source}, as in {path}"
    ]


def _images_in(train: _Contents, source: str, test: Split) -> list[str]:
    """Say how many of a sample of test images are trained on."""
    sample = _sample(test)
    twins = train.twins(sample)
    if not twins:
        return []
    return [
        f"{test.name}: of {len(sample)} images that were compared, {len(twins)} are also trained on in {source}, such "
        f"as {twins[0][0]}, which is the same image as {twins[0][1]}"
    ]


def _numbering(name: str) -> str:
    """Return the name of a data set's numbering of people, which several published ones may share."""
    return (BENCHMARKS[name].people or name) if name in BENCHMARKS else name


def _number_alike(source: str, train: Split, test: Split) -> bool:
    """Return whether an identity number means the same person in both splits."""
    if source in BENCHMARKS or test.name in BENCHMARKS:
        return _numbering(source) == _numbering(test.name)
    # Other folders number their people by themselves, also those with the same name in another place.
    ends = [end for split in (train, test) if len(split) for end in (min(split.paths), max(split.paths))]
    common = Path(os.path.commonpath(map(os.path.abspath, ends))) if ends else Path()
    return source == test.name and source in common.parts


def _sample(split: Split) -> list[str]:
    """Return up to SAMPLE paths of people, evenly spaced."""
    paths = split.paths[~np.isin(split.identities, (DISTRACTOR, JUNK))]
    chosen = np.linspace(0, max(len(paths) - 1, 0), min(SAMPLE, len(paths))).astype(int)
    return list(dict.fromkeys(paths[chosen].tolist()))


class _Contents:
    """Images that can be found by their content; unreadable and empty files have none."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._by_size: dict[int, list[str]] = defaultdict(list)
        for path, size in zip(paths, _in_threads(_size, paths), strict=True):
            self._by_size[size].append(path)
        self._by_size.pop(0, None)

    def twins(self, paths: Sequence[str]) -> list[tuple[str, str]]:
        """Return those of `paths` that have the same content as an image here, each with the path of that image."""
        sizes = dict(zip(paths, _in_threads(_size, paths), strict=True))
        candidates = [path for size in {*sizes.values()} for path in self._by_size.get(size, ())]
        by_piece = defaultdict(list)
        for path, piece in zip(candidates, _in_threads(_piece, candidates), strict=True):
            by_piece[piece].append(path)
        found = []
        for path, piece in zip(paths, _in_threads(_piece, paths), strict=True):
            same = (other for other in by_piece.get(piece, ()) if piece and _is_twin(path, other))
            found += [(path, other) for other in same][:1]
        return found


def _is_twin(path: str, other: str) -> bool:
    try:
        return path != other and filecmp.cmp(path, other, shallow=False)
    except OSError:
        return False


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  # faster than pathlib
    except OSError:
        return 0


def _piece(path: str) -> tuple[int, bytes] | None:
    """Return a file's size and the bytes in its middle; None if it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, (size - _PIECE) // 2))
            return size, file.read(_PIECE)
    except OSError:
        return None


def _in_threads(function: Callable[[str], Result], paths: Sequence[str]) -> list[Result]:
    """Apply a function to all paths in threads, because each request to a network file system has a high latency."""
    parts = [paths[first : first + _CHUNK] for first in range(0, len(paths), _CHUNK)]
    with ThreadPoolExecutor(4 * cores()) as pool:
        return [result for part in pool.map(lambda part: list(map(function, part)), parts) for result in part]
