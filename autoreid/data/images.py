"""Where a run's pixels come from: caches that one process a node makes, and image files where there is no cache."""

from __future__ import annotations

import contextlib
import shutil
import socket
from bisect import bisect_right
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoreid.config import Data
from autoreid.data.cache import Pixels, decode_all, fingerprint, open_cache, write_cache
from autoreid.data.decoding import decode, resize
from autoreid.data.records import Split
from autoreid.distributed import World, gather_objects
from autoreid.distributed.shared_work import work_while_others_wait
from autoreid.errors import AutoreidError, DataError, RunError

#: Broken images that a run names; those beyond are counted.
_NAMED = 50


class Cached(NamedTuple):
    """A cache, and whose images it has, row by row."""

    folder: Path
    paths: Sequence[str]


class Images:
    """Pixels of image files at one size, the same whether they come from a cache or not.

    Attributes:
        height, width: what images are resized to.
        broken: what is wrong with images that must be left out, by path; the same on every rank.
        notes: what the user should hear of, a line each.

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
        # A process that is sent this maps the files itself.
        return type(self), (self.height, self.width, self._caches, self.broken, self.notes)

    def __call__(self, path: str) -> Pixels:
        """The image's pixels, (3, H, W) uint8, not to be written to.

        Raises:
            DataError: it cannot be read; names the file and the reason.
        """
        number = self._numbers.get(path)
        if number is None:
            return resize(decode(path), self.height, self.width)
        file = bisect_right(self._starts, number) - 1
        pixels: Pixels = self._files[file][number - self._starts[file]]
        return pixels

    def readable(self, split: Split) -> Split:
        """The split without images that must be left out."""
        return split.select(np.array([path not in self.broken for path in split.paths], dtype=bool))


@dataclass
class _Prepared:
    """What a node has found and made.

    Attributes:
        folders: of the splits' caches, by name; those that are missing have none.
    """

    folders: dict[str, Path] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def prepare_images(data: Data, splits: Mapping[str, Split], world: World) -> Images:
    """Makes the caches of splits that have none yet, and finds the broken images, as the config wants it.

    The first rank makes them, and then the first one of each node that does not see them: caches may lie on a disk
    that nodes share, or on one of each node's own. The others wait. Where there is no room, images are decoded each
    time, and a note says so. Broken images are those that any node cannot read.

    Args:
        splits: what the run reads, by names that tell them apart.

    Raises:
        DataError: images are broken, and the config does not say to skip them.
    """
    hosts = gather_objects(socket.gethostname())
    first = hosts.index(hosts[world.rank])
    prepared: _Prepared | None = None
    for mine in (world.rank == 0, world.rank == first != 0):
        prepared = work_while_others_wait(_prepare(data, splits) if mine else None) or prepared
    everyone = gather_objects(prepared)
    broken = {path: reason for one in everyone if one for path, reason in one.broken.items()}
    _judge(broken, data.on_broken_image)
    here = everyone[first] or _Prepared()
    notes = here.notes + _left_out(broken)
    caches = [Cached(folder, splits[name].paths.tolist()) for name, folder in here.folders.items()]
    try:
        return Images(data.height, data.width, caches, broken, notes)
    except RunError as error:  # another process of this node could
        return Images(data.height, data.width, (), broken, [*notes, f"{error}; {_DECODED}"])


_DECODED = "images are decoded each time that they are used"


def _prepare(data: Data, splits: Mapping[str, Split]) -> Generator[None, None, _Prepared]:
    """Makes what is missing, split by split."""
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
            problems = yield from _look_at(paths, data.height, data.width)
        found.broken |= {paths[row]: str(problem) for row, problem in problems.items()}
    return found


def _cache(
    folder: Path, paths: Sequence[str], height: int, width: int
) -> Generator[None, None, Mapping[int, DataError]]:
    """Makes a cache if there is none that is whole; its broken images."""
    if folder.exists():
        with contextlib.suppress(RunError):
            _, rows = open_cache(folder, (len(paths), 3, height, width))
            problems = dict(zip(rows, _problems([paths[row] for row in rows]), strict=True))
            # One that can be read after all, for a permission or a disk was restored, is not in the cache.
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


def _look_at(paths: Sequence[str], height: int, width: int) -> Generator[None, None, Mapping[int, DataError]]:
    """The broken ones of all images."""
    broken: dict[int, DataError] = {}
    for _, problems in decode_all(paths, height, width):
        broken |= problems
        yield
    return broken


def _judge(broken: Mapping[str, str], policy: str) -> None:
    if not broken or policy == "skip":
        return
    first, others = next(iter(broken.values())), len(broken) - 1
    more = f", nor {others} more of the run's" if others else ""
    raise DataError(f"{first}{more}; data.on_broken_image=skip leaves out what is broken")


def _left_out(broken: Mapping[str, str]) -> list[str]:
    lines = [f"left out: {reason}" for reason in list(broken.values())[:_NAMED]]
    more = len(broken) - len(lines)
    return [*lines, f"left out: {more} more images that cannot be read"] if more else lines
