"""The image cache: all images of a split, decoded and resized, in one file that every process maps into memory.

A cache is a folder `NAME-HEIGHTxWIDTH-FINGERPRINT` with `images.npy`, (N, 3, H, W) uint8, and `broken.npy`, the rows
of images that could not be read. It appears whole or not at all. The fingerprint is that of the files' names, sizes
and times of change, so a cache of files that have changed is never taken; nothing removes it, though, since a run
may still read it.

Shape letters: N images, H height, W width.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoreid.data.decoding import decode, resize
from autoreid.errors import DataError, RunError
from autoreid.files import make_folder

#: Raised when the same files give other pixels than before.
_FORMAT = 1
#: Images that wait to be written, at once.
_AT_ONCE = 256
#: Seconds after which a cache that nobody goes on writing is taken for a killed run's.
_ABANDONED = 3600.0
_IMAGES, _BROKEN = "images.npy", "broken.npy"

Pixels = npt.NDArray[np.uint8]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def fingerprint(paths: Sequence[str], root: Path) -> str:
    """Changes when a file comes, goes or changes; the same wherever the data sets' folder lies."""

    def line(path: str) -> str:
        try:
            found = os.stat(path)  # noqa: PTH116  # of up to a million files
        except OSError as error:
            return f"{path} {error.errno}\n"
        return f"{os.path.relpath(path, root)} {found.st_size} {found.st_mtime_ns}\n"

    def lines(first: int) -> str:
        return "".join(map(line, paths[first : first + _AT_ONCE]))

    digest = hashlib.sha256(f"{_FORMAT}\n".encode())
    # File systems over a network take their time for each.
    with ThreadPoolExecutor(4 * cores()) as pool:
        for text in pool.map(lines, range(0, len(paths), _AT_ONCE)):
            digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def decode_all(
    paths: Sequence[str], height: int, width: int
) -> Iterator[tuple[list[Pixels], dict[int, DataError]]]:
    """All images in order, on all cores, some at a time: their pixels, and the errors of those that are broken.

    Broken images are black, and their places count from the first of all images.
    """

    def read(path: str) -> Pixels | DataError:
        try:
            return resize(decode(path), height, width)
        except DataError as error:
            return error

    black = np.zeros((3, height, width), np.uint8)
    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(paths), _AT_ONCE):
            found = list(pool.map(read, paths[first : first + _AT_ONCE]))
            broken = {first + i: one for i, one in enumerate(found) if isinstance(one, DataError)}
            yield [black if isinstance(one, DataError) else one for one in found], broken


def open_cache(folder: Path, shape: tuple[int, int, int, int]) -> tuple[Pixels, list[int]]:
    """Maps a cache's images, and lists the rows of broken ones.

    Raises:
        RunError: it is damaged, or cannot be read.
    """
    try:
        images = np.load(folder / _IMAGES, mmap_mode="r")
        broken = np.load(folder / _BROKEN)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{folder}: cannot read the image cache: {error}") from error
    if images.shape != shape or images.dtype != np.uint8:
        raise RunError(f"{folder}: holds {images.dtype} {images.shape}, not images of {shape}")
    # A plain array: a memmap's own indexing is slow.
    return np.asarray(images), broken.tolist()


def write_cache(
    folder: Path, paths: Sequence[str], height: int, width: int
) -> Generator[None, None, dict[int, DataError]]:
    """Decodes images into a new cache, and gives the errors of those that are broken; yields between pieces.

    Raises:
        RunError: the disk is short, or a file cannot be written; nothing is left on it.
        ConfigError: there is no writing where caches go.
    """
    make_folder(folder.parent, "set data.cache to a folder that can be written, or to null")
    _remove_abandoned(folder)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    broken: dict[int, DataError] = {}
    try:
        partial.mkdir()
        _require_space(partial, len(paths) * 3 * height * width)
        with (partial / _IMAGES).open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), 3, height, width)}
            np.lib.format.write_array_header_1_0(file, header)
            for images, problems in decode_all(paths, height, width):
                # Written and not mapped: a full disk is then an error and no signal.
                file.writelines(image.data for image in images)
                broken |= problems
                yield
            file.flush()
            os.fsync(file.fileno())
        np.save(partial / _BROKEN, np.array(list(broken), dtype=np.int64))
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise  # else another run was faster
    except OSError as error:
        raise RunError(f"{folder}: cannot write the image cache: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return broken


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder.parent}: no room for the image cache: {needed / 1e9:,.2f} GB are needed, {free / 1e9:,.2f} GB "
            f"are free"
        )


def _remove_abandoned(folder: Path) -> None:
    """Removes what runs that were killed have left of the same cache."""
    for partial in folder.parent.glob(f".{folder.name}.*.partial"):
        with contextlib.suppress(OSError):
            written = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - written > _ABANDONED:
                shutil.rmtree(partial)
