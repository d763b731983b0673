"""VIPeR (Gray and Tao, "Viewpoint Invariant Pedestrian Recognition", ECCV 2008).

    FOLDER/cam_a/000_45.bmp    person 000 from camera a, at 45 degrees
    FOLDER/cam_b/000_90.bmp    the same person from camera b

Results are means over ten random halves of the 632 people, of which no list is published. Here, the training people of
split k are the first half of numpy's RandomState(k).permutation(632), as indices of the sorted people; numpy guarantees
that RandomState's numbers never change. The others are queries from camera a and gallery from camera b.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import image_names, locate, split_of
from autoreid.data.records import ReidDataset, Split, join
from autoreid.errors import DataError

_NAME = re.compile(r"(\d+)_\d+\.")


def _read(split: int, folder: Path) -> ReidDataset:
    """Read the images and apply one of the splits, 0 to 9."""
    inside = locate(folder, "cam_a", "cam_b")
    a, b = (_read_camera(inside / name, camera) for camera, name in enumerate(("cam_a", "cam_b"), start=1))
    people = np.union1d(a.identities, b.identities)
    order = np.random.RandomState(split).permutation(len(people))
    chosen = people[order[: len(people) // 2]]
    train = join([part.select(np.isin(part.identities, chosen)) for part in (a, b)], "train")
    query, gallery = (part.select(~np.isin(part.identities, chosen)) for part in (a, b))
    return ReidDataset(folder.name, train, query, gallery)


def _read_camera(folder: Path, camera: int) -> Split:
    files = image_names(folder, "the images of one of VIPeR's cameras, such as 000_45.bmp")
    numbers = []
    for file in files:
        match = _NAME.match(file)
        if match is None:
            raise DataError(
                f"{folder / file}: invalid file name; expected person and angle, such as 000_45.bmp"
            )
        numbers.append((int(match[1]) + 1, camera))  # + 1, because 0 means distractor
    return split_of("query" if camera == 1 else "gallery", folder, files, numbers)


def _benchmark(split: int) -> Benchmark:
    published = {"train": Counts(316, 632, 2), "query": Counts(316, 316, 1), "gallery": Counts(316, 316, 1)}
    return Benchmark(("viper", "VIPeR"), partial(_read, split), published, people="viper")


#: viper is the first split, viper_1 to viper_9 are the others.
SPLITS = {f"viper_{split}" if split else "viper": _benchmark(split) for split in range(10)}
