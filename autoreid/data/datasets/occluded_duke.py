"""Occluded-DukeMTMC (Miao et al., "Pose-Guided Feature Alignment", ICCV 2019), in the layout of Market-1501.

The authors publish lists of images of DukeMTMC-reID: train.list, query.list and gallery.list, one file name per line.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import read_lines
from autoreid.data.datasets.market1501 import FOLDERS, read_market1501
from autoreid.errors import DataError


def divide_duke(unpacked: Path, target: Path) -> None:
    """Copy the images of DukeMTMC-reID that the lists name to the target; without lists, nothing is done.

    Raises:
        DataError: a list is missing, or names an unknown image.
    """
    train = next(unpacked.rglob("train.list"), None)
    if train is None:
        return
    lists = train.parent
    duke = next(unpacked.rglob(FOLDERS["train"]), unpacked / FOLDERS["train"]).parent
    for split, part in FOLDERS.items():
        (target / part).mkdir(parents=True, exist_ok=True)
        file = lists / f"{split}.list"
        for name in " ".join(read_lines(file)).split():
            # Some gallery images of DukeMTMC-reID are queries here.
            places = [duke / folder / name for folder in (part, FOLDERS["gallery"])]
            found = next((place for place in places if place.is_file()), None)
            if Path(name).name != name or found is None:
                raise DataError(f"{file}: {name}: no such image of DukeMTMC-reID in {duke}")
            shutil.copyfile(found, target / part / name)


OCCLUDED_DUKE = Benchmark(
    ("occluded_duke", "Occluded_Duke", "Occluded-DukeMTMC-Dataset"),
    read_market1501,
    {"train": Counts(702, 15_618, 8), "query": Counts(519, 2_210, 8), "gallery": Counts(1_110, 17_661, 8)},
    divide_duke,
    people="dukemtmc",
)
