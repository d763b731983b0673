"""MSMT17 (Wei et al., "Person Transfer GAN", CVPR 2018), both versions; V2 has blurred faces.

    FOLDER/train/0000/0000_000_01_0303morning_0015_0_ex.jpg    images of V1; mask_train_v2 in V2
    FOLDER/test/...                                            images of V1; mask_test_v2 in V2
    FOLDER/list_train.txt, list_val.txt                        lines such as "0000/0000_000_01_0303....jpg 0"
    FOLDER/list_query.txt, list_gallery.txt                    the same for the test images

The third number of a file name is the camera. Both lists, train and val, are used for training: 30,248 and 2,373 images
of the same people. The lists number training and test people from 0 each; here, the test people follow the others.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import locate, read_lines, split_of
from autoreid.data.records import ReidDataset, Split, join
from autoreid.errors import DataError

_LINE = re.compile(r"(\d+/[^/_\s]+_[^/_\s]+_(\d+)_[^/\s]+) (\d+)")


def _read(train: str, test: str, folder: Path) -> ReidDataset:
    """Read the lists; `train` and `test` are the names of the image folders."""
    inside = locate(folder, train, test)
    for part in (train, test):
        if not (inside / part).is_dir():
            raise DataError(f"{inside / part}: no such folder; expected images of MSMT17, next to its lists")
    parts = [_read_list("train", inside / f"list_{name}.txt", inside / train, 1) for name in ("train", "val")]
    both = join(parts, "train")
    first = int(both.identities.max()) + 1
    query, gallery = (
        _read_list(name, inside / f"list_{name}.txt", inside / test, first) for name in ("query", "gallery")
    )
    return ReidDataset(folder.name, both, query, gallery)


def _read_list(name: str, file: Path, images: Path, first: int) -> Split:
    """Read the images of a list; person 0 gets the number `first`."""
    paths, numbers = [], []
    for number, line in enumerate(read_lines(file), start=1):
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"{file}:{number}: {line[:80]!r}: expected an image and the number of its person,"
                " such as 0000/0000_000_01_0303morning_0015_0_ex.jpg 0"
            )
        paths.append(match[1])
        numbers.append((int(match[3]) + first, int(match[2])))
    if not paths:
        raise DataError(f"{file}: empty list; expected the {name} images of MSMT17")
    return split_of(name, images, paths, numbers)


_PUBLISHED = {
    "train": Counts(1_041, 32_621, 15),
    "query": Counts(3_060, 11_659, 15),
    "gallery": Counts(3_060, 82_161, 15),
}
MSMT17 = Benchmark(
    ("msmt17", "MSMT17_V1", "MSMT17"), partial(_read, "train", "test"), _PUBLISHED, people="msmt17"
)
MSMT17_V2 = Benchmark(
    ("msmt17_v2", "MSMT17_V2", "msmt17"),
    partial(_read, "mask_train_v2", "mask_test_v2"),
    _PUBLISHED,
    people="msmt17",
)
