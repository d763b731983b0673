"""The pixels of a run's images: from caches that one process per node creates, or else from the image files."""

from __future__ import annotations

import contextlib
import shutil
import socket
from bisect import bisect_right
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoreid.config import Data
from autoreid.data.cache import Pixels, decode_all, fingerprint, open_cache, write_cache
from autoreid.data.decoding import decode, resize
from autoreid.data.records import ReidDataset, Split
from autoreid.distributed import World, gather_objects
from autoreid.distributed.shared_work import work_while_others_wait
from autoreid.errors import AutoreidError, DataError, RunError

#: Maximum number of broken images that are named; further ones are only counted.
_NAMED = 50


class Cached(NamedTuple):
    """A cache folder and the paths of its images, row by row."""

    folder: Path
    paths: Sequence[str]


class Images:
    """The pixels of image files, resized; the same whether they come from a cache or from the files.

    Attributes:
        height, width: the size in pixels.
        broken: path -> reason, for broken images that are skipped; the same on every rank.
        notes: warnings for the user, one line each.

    Raises:
        RunError: a cache cannot be read.
    """

    def __init__(
        self,
        height: int,
        width: int,
        caches: Sequence[Cached] = (),
        broken: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.height, self.width, self.notes = height, width, tuple(notes)
        self.broken = dict(broken or {})
        self._caches = tuple(caches)
        self._files = [
            open_cache(cache.folder, (len(cache.paths), 3, height, width))[0] for cache in self._caches
        ]
        self._starts = [0, *accumulate(len(cache.paths) for cache in self._caches)]
        every = (path for cache in self._caches for path in cache.paths)
        self._numbers = {path: number for number, path in enumerate(every)}

    def __reduce__(self) -> tuple[Any, ...]:
        # The receiving process opens the caches itself.
        return type(self), (self.height, self.width, self._caches, self.broken, self.notes)

    def __call__(self, path: str) -> Pixels:
        """Return the pixels of an image, (3, H, W) uint8; read-only.

        Raises:
            DataError: the image cannot be read; the message names the file and the reason.
        """
        number = self._numbers.get(path)
        if number is None:
            return resize(decode(path), self.height, self.width)
        file = bisect_right(self._starts, number) - 1
        pixels: Pixels = self._files[file][number - self._starts[file]]
        return pixels

    def readable(self, split: Split) -> Split:
        """Return the split without its broken images."""
        return split.select(np.array([path not in self.broken for path in split.paths], dtype=bool))

    def readable_dataset(self, dataset: ReidDataset) -> ReidDataset:
        """Return the data set without its broken images."""
        train, query, gallery = map(self.readable, (dataset.train, dataset.query, dataset.gallery))
        return replace(dataset, train=train, query=query, gallery=gallery)


@dataclass
class _Prepared:
    """The caches and broken images that a process has found.

    Attributes:
        folders: split name -> cache folder; splits without a cache are missing.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def prepare_images(data: Data, splits: Mapping[str, Split], world: World) -> Images:
    """Create missing caches and find broken images, as configured.

    Rank 0 creates the caches first; then the first rank of each node where they are not visible does the same,
    because caches may be on a shared disk or on each node's local disk. The other ranks wait. If there is not
    enough disk space, images are decoded each time they are used, and a note says so. An image is broken if any
    node cannot read it.

    Args:
        splits: the splits that the run reads, by unique names.

    Raises:
        DataError: images are broken and `data.on_broken_image` is not "skip".
    """
    hosts = gather_objects(socket.gethostname())
    first = hosts.index(hosts[world.rank])
    prepared: _Prepared | None = None
    for my_turn in (world.rank == 0, world.rank == first != 0):
        prepared = work_while_others_wait(_prepare(data, splits) if my_turn else None) or prepared
    everyone = gather_objects(prepared)
    broken = {path: reason for one in everyone if one for path, reason in one.broken.items()}
    _check_broken(broken, data.on_broken_image)
    here = everyone[first] or _Prepared()
    notes = here.notes + _skipped(broken)
    caches = [Cached(folder, splits[name].paths.tolist()) for name, folder in here.folders.items()]
    try:
        return Images(data.height, data.width, caches, broken, notes)
    except RunError as error:  # although the process that created the cache could read it
        return Images(data.height, data.width, (), broken, [*notes, f"{error}; {_DECODED}"])


_DECODED = "images are decoded each time they are used"


def _prepare(data: Data, splits: Mapping[str, Split]) -> Generator[None, None, _Prepared]:
    """Create the missing caches, split by split; yields between pieces of work."""
    found = _Prepared()
    for name, split in splits.items():
        paths = split.paths.tolist()
        problems: Mapping[int, DataError] = {}
        try:
            if data.cache is not None:
                key = f"{name}-{data.height}x{data.width}-{fingerprint(paths, data.root)}"
                folder = data.root / data.cache / key
                problems = yield from _cache(folder, paths, data.height, data.width)
                found.folders[name] = folder
        except AutoreidError as error:
            found.notes.append(f"{error}; {_DECODED}")
        if name not in found.folders and data.on_broken_image == "skip":
            problems = yield from _find_broken(paths, data.height, data.width)
        found.broken |= {paths[row]: str(problem) for row, problem in problems.items()}
    return found


def _cache(
    folder: Path, paths: Sequence[str], height: int, width: int
) -> Generator[None, None, Mapping[int, DataError]]:
    """Create a cache unless a valid one exists; returns the errors of broken images by row."""
    if folder.exists():
        with contextlib.suppress(RunError):
            _, rows = open_cache(folder, (len(paths), 3, height, width))
            problems = dict(zip(rows, _problems([paths[row] for row in rows]), strict=True))
            # If one of them has become readable, after a permission or a disk was fixed, create the cache again.
            if all(problems.values()):
                return {row: problem for row, problem in problems.items() if problem}
        shutil.rmtree(folder, ignore_errors=True)
    return (yield from write_cache(folder, paths, height, width))


def _problems(paths: Sequence[str]) -> list[DataError | None]:
    found: list[DataError | None] = []
    for path in paths:
        try:
            decode(path)
            found.append(None)
        except DataError as error:
            found.append(error)
    return found


def _find_broken(
    paths: Sequence[str], height: int, width: int
) -> Generator[None, None, Mapping[int, DataError]]:
    """Decode all images and return the errors of broken ones by index."""
    broken: dict[int, DataError] = {}
    for _, problems in decode_all(paths, height, width):
        broken |= problems
        yield
    return broken


def _check_broken(broken: Mapping[str, str], policy: str) -> None:
    if not broken or policy == "skip":
        return
    first, others = next(iter(broken.values())), len(broken) - 1
    more = f" (and {others} more)" if others else ""
    raise DataError(f"{first}{more}; set data.on_broken_image=skip to train without broken images")


def _skipped(broken: Mapping[str, str]) -> list[str]:
    lines = [f"skipped: {reason}" for reason in list(broken.values())[:_NAMED]]
    more = len(broken) - len(lines)
    return [*lines, f"skipped: {more} more images that cannot be read"] if more else lines
