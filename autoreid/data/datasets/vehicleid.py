"""PKU VehicleID, vehicles (Liu et al., "Deep Relative Distance Learning", CVPR 2016).

    FOLDER/image/0000001.jpg                    all images
    FOLDER/train_test_split/train_list.txt      lines such as "0000001 42": image and vehicle
    FOLDER/train_test_split/test_list_800.txt   the same, for the smallest of three tests; _1600, _2400

Of each test vehicle, one random image is the gallery and the others are queries. Results are means over ten random
choices, which are numbered here, because the authors publish none. It has no camera numbers, and cameras play no role
in its protocol: queries get another camera than the gallery, so that no match is removed.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import locate, read_lines, split_of
from autoreid.data.records import ReidDataset, Split
from autoreid.errors import DataError

_LISTS = "train_test_split"
_LINE = re.compile(r"(\d+) (\d+)")
#: Camera of the queries and of the training images, and camera of the gallery.
_CAMERA, _GALLERY_CAMERA = 1, 2
#: Published numbers of images of each test, by its number of vehicles.
_TEST_IMAGES = {800: 6_493, 1_600: 13_377, 2_400: 19_777}


def _read(vehicles: int, choice: int, folder: Path) -> ReidDataset:
    """Read the training images and one of the tests, with one of the random galleries, 0 to 9."""
    inside = locate(folder, _LISTS)
    train = _read_list("train", inside, "train_list.txt")
    test = _read_list("test", inside, f"test_list_{vehicles}.txt")
    order = np.random.RandomState(choice).permutation(len(test))
    _, first = np.unique(test.identities[order], return_index=True)
    in_gallery = np.zeros(len(test), dtype=bool)
    in_gallery[order[first]] = True
    test.cameras[in_gallery] = _GALLERY_CAMERA
    return ReidDataset(
        folder.name, train, test.select(~in_gallery, "query"), test.select(in_gallery, "gallery")
    )


def _read_list(name: str, folder: Path, list_name: str) -> Split:
    file = folder / _LISTS / list_name
    names, numbers = [], []
    for number, line in enumerate(read_lines(file), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"{file}:{number}: {line[:80]!r}: expected an image and its vehicle, such as 0000001 42"
            )
        names.append(f"{match[1]}.jpg")
        numbers.append((int(match[2]) + 1, _CAMERA))  # + 1, because 0 means distractor
    if not names:
        raise DataError(f"{file}: empty list; expected images of VehicleID")
    return split_of(name, folder / "image", names, numbers)


def _benchmark(vehicles: int, choice: int) -> Benchmark:
    published = {
        "train": Counts(13_164, 113_346),
        "query": Counts(vehicles, _TEST_IMAGES[vehicles] - vehicles),
        "gallery": Counts(vehicles, vehicles),
    }
    return Benchmark(
        ("vehicleid", "VehicleID", "VehicleID_V1.0"),
        partial(_read, vehicles, choice),
        published,
        people="vehicleid",
    )


#: vehicleid_800 is the smallest test with the first random gallery, vehicleid_800_1 to vehicleid_800_9 have the others.
TESTS = {
    f"vehicleid_{vehicles}_{choice}" if choice else f"vehicleid_{vehicles}": _benchmark(vehicles, choice)
    for vehicles in _TEST_IMAGES
    for choice in range(10)
}
