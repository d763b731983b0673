"""Reads a folder in the layout of Market-1501 (Zheng et al., "Scalable Person Re-identification", ICCV 2015).

    ROOT/bounding_box_train/0002_c1s1_000451_03.jpg    images to train on
    ROOT/query/0001_c1s1_001051_00.jpg                 one image for each identity and camera
    ROOT/bounding_box_test/0000_c1s1_000151_01.jpg     what the queries are ranked against

A name starts with the identity, then `_c` and the camera. In bounding_box_test, identity 0000 marks
distractors and -1 junk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split
from autoreid.errors import DataError

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_SUFFIXES = (".jpg", ".jpeg", ".png")
_NAME = re.compile(r"(-1|\d+)_c(\d+)")


def read_market1501(root: Path) -> ReidDataset:
    """Read which images there are, whom they show and by which camera; opens no image.

    Images come in the order of their names, so the result is the same on every machine. Junk is left out of
    the gallery, for it must not influence a ranking; distractors stay in it with identity DISTRACTOR.

    Raises:
        DataError: a folder is missing or holds no image, a name does not follow the layout, or junk or a
            distractor is among the images to train on or the queries.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one that holds {', '.join(FOLDERS.values())}")
    train, query, gallery = (_read_folder(root / folder, name) for name, folder in FOLDERS.items())
    for split in (train, query):
        _refuse_nobody(split)
    gallery = gallery.select(gallery.identities != JUNK)
    if not len(gallery):
        raise DataError(f"{root / FOLDERS['gallery']}: every image is junk (-1); expected a gallery to rank")
    return ReidDataset(root.name, train, query, gallery)


def _read_folder(folder: Path, name: str) -> Split:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the {name} images of Market-1501's layout")
    with os.scandir(folder) as entries:
        files = sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".")
        )
    if not files:
        raise DataError(
            f"{folder}: holds no image; expected the {name} images, such as 0002_c1s1_000451_03.jpg"
        )
    numbers = np.array([_parse(folder, file) for file in files], dtype=np.int64)
    paths = np.array([f"{folder}{os.sep}{file}" for file in files], dtype=object)
    return Split(name, paths, identities=numbers[:, 0].copy(), cameras=numbers[:, 1].copy())


def _parse(folder: Path, file: str) -> tuple[int, int]:
    match = _NAME.match(file)
    if match is None:
        raise DataError(
            f"{folder / file}: the name does not start with an identity and a camera;"
            " expected one like 0002_c1s1_000451_03.jpg"
        )
    return int(match[1]), int(match[2])


def _refuse_nobody(split: Split) -> None:
    nobody = np.isin(split.identities, (JUNK, DISTRACTOR))
    if nobody.any():
        path = split.paths[nobody.argmax()]
        raise DataError(
            f"{path}: junk (-1) or a distractor (0000) among the {split.name} images;"
            f" expected identities from 1, and these only in {FOLDERS['gallery']}"
        )


#: Of the 19,732 images of bounding_box_test, 3,819 are junk; 2,793 of the others are distractors.
MARKET1501 = Benchmark(
    "market1501",
    read_market1501,
    {"train": Counts(751, 12_936, 6), "query": Counts(750, 3_368, 6), "gallery": Counts(750, 15_913, 6)},
)
