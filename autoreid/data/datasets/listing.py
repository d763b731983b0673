"""What the readers share: finding folders and image files, and parsing names into records."""

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
    """The folder that holds any of `inside`: the given one, or one below it, as archives have one of their own.

    Where none does it is the given one, whose reader then says what is missing.

    Raises:
        DataError: two folders below it do.
    """
    if not folder.is_dir() or any((folder / name).exists() for name in inside):
        return folder
    below = sorted(path for path in folder.iterdir() if any((path / name).exists() for name in inside))
    if len(below) > 1:
        raise DataError(
            f"{folder}: {inside[0]} is in {below[0].name} and in {below[1].name}; keep one of them"
        )
    return below[0] if below else folder


def image_names(folder: Path, expected: str) -> list[str]:
    """The names of a folder's images in order, the same on every machine; hidden files are left out.

    Raises:
        DataError: there is no such folder, or no image in it; says what was expected.
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
        raise DataError(f"{folder}: holds no image; expected {expected}")
    return names


def numbers_in(pattern: re.Pattern[str], example: str) -> Callable[[Path, str], tuple[int, int]]:
    """A parser of file names that gives the pattern's two groups, identity and camera, as numbers."""

    def parse(folder: Path, name: str) -> tuple[int, int]:
        match = pattern.match(name)
        if match is None:
            raise DataError(
                f"{folder / name}: the name does not start with an identity and a camera;"
                f" expected one like {example}"
            )
        return int(match[1]), int(match[2])

    return parse


def split_of(name: str, folder: Path, files: Sequence[str], numbers: Sequence[tuple[int, int]]) -> Split:
    """The records of files in a folder, with their identities and cameras."""
    pairs = np.array(numbers, dtype=np.int64).reshape(-1, 2)
    paths = np.array([f"{folder}{os.sep}{file}" for file in files], dtype=object)
    return Split(name, paths, pairs[:, 0].copy(), pairs[:, 1].copy())


def empty_split(name: str) -> Split:
    """No images."""
    return split_of(name, Path(), [], [])


def refuse_nobody(split: Split) -> None:
    """Checks that junk and distractors are in the gallery alone.

    Raises:
        DataError: one is among the images; names it.
    """
    nobody = np.isin(split.identities, (JUNK, DISTRACTOR))
    if nobody.any():
        path = split.paths[nobody.argmax()]
        raise DataError(
            f"{path}: junk (-1) or a distractor (0000) among the {split.name} images; they belong in the gallery"
        )
