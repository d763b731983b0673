"""Functions shared by the readers: find folders and image files, and convert file names to records."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from autoreid.data.records import DISTRACTOR, JUNK, Split
from autoreid.errors import DataError

#: What file managers and operating systems leave in folders and archives, besides hidden files.
_LITTER = {"__MACOSX", "@eaDir", "#recycle", "lost+found", "Thumbs.db", "desktop.ini"}
#: Suffixes of files that are no images for certain, which nobody misses.
_NO_IMAGES = (
    ".csv",
    ".html",
    ".json",
    ".log",
    ".mat",
    ".md",
    ".npy",
    ".npz",
    ".pdf",
    ".py",
    ".txt",
    ".xml",
    ".yaml",
)
#: Formats that Pillow recognises, but cannot decode by itself.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes, in lower case, of all kinds of images that Pillow reads."""
    kinds = Image.registered_extensions()
    return tuple(suffix for suffix, kind in kinds.items() if kind in Image.OPEN.keys() - _NOT_DECODED)


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return whether a file is one that Pillow reads, by its name."""
    return entry.name.lower().endswith(image_suffixes())


def content(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden files and litter.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            kept = [
                entry for entry in entries if not entry.name.startswith(".") and entry.name not in _LITTER
            ]
    except OSError as error:
        raise DataError(f"{folder}: cannot read the folder: {error.strerror}") from error
    return sorted(kept, key=lambda entry: entry.name)


def folders_in(folder: Path) -> list[str]:
    """Return the sorted names of a folder's subfolders, without hidden ones and litter."""
    return [entry.name for entry in content(folder) if entry.is_dir()]


class PassedOver:
    """What a reader passes over: how much, and an example."""

    def __init__(self) -> None:
        self.count = 0
        self.example = ""

    def add(self, entry: os.DirEntry[str], reason: str) -> None:
        """Count a file or folder, unless nobody would miss it."""
        if not entry.name.lower().endswith(_NO_IMAGES):
            self.example = self.example or f"{entry.path} ({reason})"
            self.count += 1

    def keeps(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a file is an image by its name; count it otherwise."""
        if is_image(entry):
            return True
        self.add(entry, "a folder below a camera's" if entry.is_dir() else "no image that can be read")
        return False

    def notes(self) -> Iterator[str]:
        """Yield one note, if anything was skipped."""
        if self.count:
            what = "file or folder is" if self.count == 1 else "files and folders are"
            yield f"{self.count:,} {what} skipped, such as {self.example}"


def passed_over_in(folders: Iterable[Path]) -> PassedOver:
    """Return what `image_names` passes over in some folders of images."""
    passed = PassedOver()
    for folder in folders:
        for entry in content(folder):
            passed.keeps(entry)
    return passed


def locate(folder: Path, *inside: str) -> Path:
    """Return the folder that contains any of `inside`: `folder`, or the one subfolder that does.

    If there is none, return `folder`, so that its reader reports what is missing.

    Raises:
        DataError: two subfolders contain one.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in inside):
        return folder
    below = [name for name in folders_in(folder) if any((folder / name / file).exists() for file in inside)]
    if len(below) > 1:
        raise DataError(f"{folder}: both {below[0]} and {below[1]} contain {inside[0]}; keep one of them")
    return folder / below[0] if below else folder


def image_names(folder: Path, expected: str) -> list[str]:
    """Return the sorted file names of a folder's images, without hidden files.

    Raises:
        DataError: there is no such folder, or it contains no image; the message says what was expected.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name for entry in entries if is_image(entry) and not entry.name.startswith(".")
            )
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no such folder; expected {expected}") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot read the folder: {error.strerror}; expected {expected}") from error
    if not names:
        raise DataError(f"{folder}: contains no image; expected {expected}")
    return names


def numbers_in(pattern: re.Pattern[str], example: str) -> Callable[[Path, str], tuple[int, int]]:
    """Return a parser of file names; the pattern's two groups are identity and camera."""

    def parse(folder: Path, name: str) -> tuple[int, int]:
        match = pattern.match(name)
        if match is None:
            raise DataError(
                f"{folder / name}: the name does not start with an identity and a camera;"
                f" expected one like {example}"
            )
        numbers = int(match[1]), int(match[2])
        if max(numbers) > np.iinfo(np.int64).max:
            raise DataError(f"{folder / name}: the number {max(numbers)} is too large: must fit into 63 bits")
        return numbers

    return parse


def read_lines(file: Path) -> list[str]:
    """Return the lines of a data set's list; raises DataError, naming the file, if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot read the list: {error}") from error


def split_of(name: str, folder: Path, files: Sequence[str], numbers: Sequence[tuple[int, int]]) -> Split:
    """Return a split of files in one folder, with their (identity, camera) numbers."""
    pairs = np.array(numbers, dtype=np.int64).reshape(-1, 2)
    paths = np.array([f"{folder}{os.sep}{file}" for file in files], dtype=object)
    return Split(name, paths, pairs[:, 0].copy(), pairs[:, 1].copy())


def empty_split(name: str) -> Split:
    """Return a split without images."""
    return split_of(name, Path(), [], [])


def refuse_nobody(split: Split) -> None:
    """Raise an error if junk or distractors are among the images of a split; only galleries may have them.

    Raises:
        DataError: the message names the first such image.
    """
    nobody = np.isin(split.identities, (JUNK, DISTRACTOR))
    if nobody.any():
        path = split.paths[nobody.argmax()]
        raise DataError(
            f"{path}: junk (-1) or a distractor (0000) among the {split.name} images; they belong in the gallery, and "
            f"a person needs another name, or a number from 1"
        )
