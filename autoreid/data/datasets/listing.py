"""Functions shared by the readers: find folders and image files, and convert file names to records."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from autoreid.data.records import DISTRACTOR, JUNK, Split
from autoreid.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def locate(folder: Path, *inside: str) -> Path:
    """Return the folder that contains any of `inside`: `folder`, or the one subfolder that does.

    If there is none, return `folder`, so that its reader reports what is missing.

    Raises:
        DataError: two subfolders contain one.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in inside):
        return folder
    below = sorted(path for path in folder.iterdir() if any((path / name).exists() for name in inside))
    if len(below) > 1:
        raise DataError(
            f"{folder}: both {below[0].name} and {below[1].name} contain {inside[0]}; keep one of them"
        )
    return below[0] if below else folder


def image_names(folder: Path, expected: str) -> list[str]:
    """Return the sorted file names of a folder's images, without hidden files.

    Raises:
        DataError: there is no such folder, or it contains no image; the message says what was expected.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
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
