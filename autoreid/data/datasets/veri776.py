"""VeRi-776, vehicles (Liu et al., "Large-Scale Vehicle Re-Identification in Urban Surveillance Videos", ICME 2016).

    FOLDER/image_train/0001_c001_00016450_0.jpg    576 vehicles; a name starts with vehicle and camera
    FOLDER/image_test/0002_c002_00030600_0.jpg     gallery: 200 other vehicles
    FOLDER/image_query/0002_c002_00030600_0.jpg    queries, which are gallery images as well

A query's own image is never ranked, because it has the query's vehicle and camera.
"""

from __future__ import annotations

import re
from pathlib import Path

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import image_names, locate, numbers_in, refuse_nobody, split_of
from autoreid.data.records import ReidDataset, Split

_FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
_EXAMPLE = "0001_c001_00016450_0.jpg"
_parse = numbers_in(re.compile(r"(\d+)_c(\d+)_"), _EXAMPLE)


def _read(folder: Path) -> ReidDataset:
    inside = locate(folder, _FOLDERS["train"])
    train, query, gallery = (_read_split(name, inside / part) for name, part in _FOLDERS.items())
    for split in (train, query):
        refuse_nobody(split)
    return ReidDataset(folder.name, train, query, gallery)


def _read_split(name: str, folder: Path) -> Split:
    files = image_names(folder, f"the {name} images of VeRi-776, such as {_EXAMPLE}")
    return split_of(name, folder, files, [_parse(folder, file) for file in files])


VERI776 = Benchmark(
    ("veri776", "VeRi", "VeRi-776", "veri"),
    _read,
    {"train": Counts(576, 37_778), "query": Counts(200, 1_678), "gallery": Counts(200, 11_579)},
)
