"""The layout of Market-1501 (Zheng et al., "Scalable Person Re-identification", ICCV 2015).

    FOLDER/bounding_box_train/0002_c1s1_000451_03.jpg    training images
    FOLDER/query/0001_c1s1_001051_00.jpg                 one image per identity and camera
    FOLDER/bounding_box_test/0000_c1s1_000151_01.jpg     gallery
    FOLDER/images/                                       500 k further distractors, for market1501_500k
    FOLDER/gt_bbox/0001_c1s1_001051_00.jpg               hand-drawn boxes of all people, for multi-query

A file name starts with the identity, then `_c` and the camera. In bounding_box_test, identity 0000 means
distractor and -1 junk. The folders may be in a subfolder, as in the authors' archive.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import image_names, locate, numbers_in, refuse_nobody, split_of
from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split, join, sightings
from autoreid.errors import DataError

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
MULTI_QUERY = "gt_bbox"
_EXAMPLE = "0002_c1s1_000451_03.jpg"
_NAME = re.compile(r"(-1|\d+)_c(\d+)")
_parse = numbers_in(_NAME, _EXAMPLE)


def read_market1501(folder: Path) -> ReidDataset:
    """Read the file names and their identities and cameras; opens no image.

    Images are sorted by name, so the result is the same on every machine. Junk is removed from the gallery,
    because it must not influence a ranking; distractors stay, with identity DISTRACTOR.

    Raises:
        DataError: a folder is missing or contains no image, a file name is invalid, or there is junk or a
            distractor among the training images or the queries.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {', '.join(FOLDERS.values())}")
    inside = locate(folder, FOLDERS["train"])
    train, query, gallery = (_read_folder(inside / part, name) for name, part in FOLDERS.items())
    for split in (train, query):
        refuse_nobody(split)
    gallery = gallery.select(gallery.identities != JUNK)
    if not len(gallery):
        raise DataError(
            f"{inside / FOLDERS['gallery']}: all images are junk (-1); expected a gallery to rank"
        )
    return ReidDataset(folder.name, train, query, gallery)


def read_multi_query(folder: Path, query: Split) -> Split:
    """Return the images that are merged to multi-queries: all in gt_bbox of a query's identity and camera.

    Queries without any such image, and all queries of a folder without gt_bbox, are kept as they are.

    Raises:
        DataError: gt_bbox contains no image, or a file name is invalid.
    """
    inside = locate(folder, FOLDERS["train"])
    if not all((inside / part).is_dir() for part in (FOLDERS["train"], MULTI_QUERY)):
        return query
    boxes = _read_folder(inside / MULTI_QUERY, query.name)
    every = join([boxes, query], query.name)
    _, groups = sightings(every.identities, every.cameras)
    of_boxes, of_query = groups[: len(boxes)], groups[len(boxes) :]
    return every.select(np.concatenate([np.isin(of_boxes, of_query), ~np.isin(of_query, of_boxes)]))


def _read_folder(folder: Path, name: str) -> Split:
    files = image_names(folder, f"the {name} images of Market-1501's layout, such as {_EXAMPLE}")
    return split_of(name, folder, files, [_parse(folder, file) for file in files])


def _read_with_500k(folder: Path) -> ReidDataset:
    """Read Market-1501 with a larger gallery; the files in `images` are distractors, unless marked as junk."""
    dataset = read_market1501(folder)
    images = locate(folder, "images") / "images"
    files = image_names(images, "the 500 k distractors")
    numbers = []
    for file in files:
        match = _NAME.match(file)
        # Their cameras do not matter: a distractor never matches a query, and is never removed.
        identity, camera = (int(match[1]), int(match[2])) if match else (DISTRACTOR, 1)
        numbers.append((JUNK if identity == JUNK else DISTRACTOR, camera))
    more = split_of("gallery", images, files, numbers)
    gallery = join([dataset.gallery, more.select(more.identities != JUNK)], "gallery")
    return replace(dataset, gallery=gallery)


#: bounding_box_test has 19,732 images; 3,819 of them are junk, 2,793 of the rest distractors.
MARKET1501 = Benchmark(
    ("market1501", "Market-1501-v15.09.15", "Market-1501"),
    read_market1501,
    {"train": Counts(751, 12_936, 6), "query": Counts(750, 3_368, 6), "gallery": Counts(750, 15_913, 6)},
    people="market1501",
)
MARKET1501_500K = Benchmark(
    ("market1501_500k", "market1501"),
    _read_with_500k,
    {**MARKET1501.published, "gallery": Counts(750, 515_913, 6)},
    people="market1501",
)
