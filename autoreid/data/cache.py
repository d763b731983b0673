"""The image cache: all images of a split, decoded and resized, in one file that all processes memory-map.

A cache is a folder `NAME-HEIGHTxWIDTH-FINGERPRINT` with `images.npy`, (N, 3, H, W) uint8, and `broken.npy`, the
row numbers of images that could not be read. It is created atomically. The fingerprint covers the names, sizes
and modification times of the image files, so a cache of files that have changed is never used. Old caches are
not removed, because another run may still be reading them.

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

#: Increase this when the same files give different pixels than before.
_FORMAT = 2
#: Number of images decoded before they are written.
_CHUNK = 256
#: Seconds without a write after which an unfinished cache is considered abandoned by a killed run.
_ABANDONED = 3600.0
_IMAGES, _BROKEN = "images.npy", "broken.npy"

Pixels = npt.NDArray[np.uint8]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def fingerprint(paths: Sequence[str], root: Path) -> str:
    """Return a digest that changes if a file is added, removed or modified.

    Paths are taken relative to `root`, so moving the whole folder does not change it.
    """

    def line(path: str) -> str:
        try:
            found = os.stat(path)  # noqa: PTH116  # faster than pathlib, for up to a million files
        except OSError as error:
            return f"{path} {error.errno}\n"
        return f"{os.path.relpath(path, root)} {found.st_size} {found.st_mtime_ns}\n"

    def lines(first: int) -> str:
        return "".join(map(line, paths[first : first + _CHUNK]))

    digest = hashlib.sha256(f"{_FORMAT}\n".encode())
    # In threads, because each request to a network file system has a high latency.
    with ThreadPoolExecutor(4 * cores()) as pool:
        for text in pool.map(lines, range(0, len(paths), _CHUNK)):
            digest.update(text.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def decode_all(
    paths: Sequence[str], height: int, width: int
) -> Iterator[tuple[list[Pixels], dict[int, DataError]]]:
    """Decode and resize all images in order, in chunks, on all cores.

    Yields:
        The pixels of a chunk, and the errors of its broken images by index in `paths`. Broken images are black.
    """

    def read(path: str) -> Pixels | DataError:
        try:
            return resize(decode(path), height, width)
        except DataError as error:
            return error

    black = np.zeros((3, height, width), np.uint8)
    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(paths), _CHUNK):
            found = list(pool.map(read, paths[first : first + _CHUNK]))
            broken = {first + i: one for i, one in enumerate(found) if isinstance(one, DataError)}
            yield [black if isinstance(one, DataError) else one for one in found], broken


def open_cache(folder: Path, shape: tuple[int, int, int, int]) -> tuple[Pixels, list[int]]:
    """Memory-map the images of a cache, and list the rows of broken images.

    Raises:
        RunError: the cache is damaged or cannot be read.
    """
    try:
        images = np.load(folder / _IMAGES, mmap_mode="r")
        broken = np.load(folder / _BROKEN)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{folder}: cannot read the image cache: {error}") from error
    if images.shape != shape or images.dtype != np.uint8:
        raise RunError(f"{folder}: contains {images.dtype} {images.shape}, expected uint8 images {shape}")
    # Converted to a plain array, because indexing a memmap is slow.
    return np.asarray(images), broken.tolist()


def write_cache(
    folder: Path, paths: Sequence[str], height: int, width: int
) -> Generator[None, None, dict[int, DataError]]:
    """Decode images into a new cache, and return the errors of broken images; yields after each chunk.

    Raises:
        RunError: the disk is full or a file cannot be written; nothing is left behind.
        ConfigError: the folder that holds the caches is not writable.
    """
    make_folder(folder.parent, "set data.cache to a writable folder, or to null")
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
                # Written rather than memory-mapped: a full disk then raises an error instead of SIGBUS.
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
                raise  # otherwise another run finished first
    except OSError as error:
        raise RunError(f"{folder}: cannot write the image cache: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return broken


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder.parent}: not enough disk space for the image cache: needs {needed / 1e9:,.2f} GB, "
            f"{free / 1e9:,.2f} GB available"
        )


def _remove_abandoned(folder: Path) -> None:
    """Remove unfinished copies of the same cache that killed runs have left behind."""
    for partial in folder.parent.glob(f".{folder.name}.*.partial"):
        with contextlib.suppress(OSError):
            written = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
            if time.time() - written > _ABANDONED:
                shutil.rmtree(partial)
