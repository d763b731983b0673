"""GRID, QMUL underground re-identification (Loy et al., IJCV 2010).

    FOLDER/probe/0001_1_25004_107_32_106_221.jpeg      250 people, one image each
    FOLDER/gallery/0001_2_25023_116_134_128_330.jpeg   the same people from another camera
    FOLDER/gallery/0000_1_25008_169_19_94_252.jpeg     775 further people, who match no query
    FOLDER/features_and_partitions.mat                 the training people of ten splits: trainIdxAll{k}.personIdx

File names start with person and camera. Results are means over the ten splits, each with 125 people for training; the
others are searched among themselves and the 775.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import image_names, locate, numbers_in, refuse_nobody, split_of
from autoreid.data.datasets.mat import load_mat
from autoreid.data.records import ReidDataset, Split, join
from autoreid.errors import DataError

_parse = numbers_in(re.compile(r"(\d+)_(\d+)_"), "0001_1_25004_107_32_106_221.jpeg")


def _read(split: int, folder: Path) -> ReidDataset:
    """Read the images and apply one of the published splits, 0 to 9."""
    inside = locate(folder, "probe", "gallery")
    probe, gallery = _read_folder("query", inside / "probe"), _read_folder("gallery", inside / "gallery")
    refuse_nobody(probe)
    chosen = _training_people(inside / "features_and_partitions.mat", split)
    train = join([part.select(np.isin(part.identities, chosen)) for part in (probe, gallery)], "train")
    query, others = (part.select(~np.isin(part.identities, chosen)) for part in (probe, gallery))
    return ReidDataset(folder.name, train, query, others)


def _read_folder(name: str, folder: Path) -> Split:
    files = image_names(folder, "images of GRID, such as 0001_1_25004_107_32_106_221.jpeg")
    return split_of(name, folder, files, [_parse(folder, file) for file in files])


def _training_people(file: Path, split: int) -> npt.NDArray[np.int64]:
    content = load_mat(file)
    try:
        people = np.atleast_1d(content["trainIdxAll"])[split]["personIdx"]
        return np.concatenate([np.ravel(part) for part in np.ravel(people)]).astype(np.int64)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f"{file}: contains no trainIdxAll{{{split + 1}}}.personIdx: {error!r}") from error


def _benchmark(split: int) -> Benchmark:
    published = {"train": Counts(125, 250), "query": Counts(125, 125), "gallery": Counts(125, 900)}
    return Benchmark(("grid", "GRID", "underground_reid"), partial(_read, split), published, people="grid")


#: grid is the first split, grid_1 to grid_9 are the others.
SPLITS = {f"grid_{split}" if split else "grid": _benchmark(split) for split in range(10)}
