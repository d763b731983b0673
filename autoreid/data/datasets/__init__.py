"""Data sets: the published ones by name, and folders in their layouts.

A data set `name` lies in a folder below `data.root`. Each published one has a reader of its own, which knows that
folder, its layout and its published size.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import replace
from pathlib import Path

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.market1501 import FOLDERS, MARKET1501, read_market1501
from autoreid.data.records import ReidDataset
from autoreid.errors import DataError

__all__ = ["BENCHMARKS", "Benchmark", "Counts", "read_dataset", "read_folder"]

_log = logging.getLogger(__name__)

BENCHMARKS: dict[str, Benchmark] = {
    "market1501": MARKET1501,
}


def read_dataset(root: Path, name: str) -> ReidDataset:
    """Reads a data set below a folder: a published one by its name, or any other in a known layout; opens no image.

    A published one whose size is not as published is warned about.

    Raises:
        DataError: there is no such folder, or it does not follow the layout; one line that says what was expected
            where, and the nearest names.
    """
    benchmark = BENCHMARKS.get(name)
    folder = root / (benchmark.folder if benchmark else name)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the data set {name} there{_nearest(root, name)}")
    return read_folder(folder, name)


def read_folder(folder: Path, name: str) -> ReidDataset:
    """Reads a data set's own folder, by its name, that of the folder, or the layout that it is in.

    Raises:
        DataError: as `read_dataset`.
    """
    benchmark = BENCHMARKS.get(name) or BENCHMARKS.get(folder.resolve().name)
    if benchmark is None:
        return replace(_read_unknown(folder), name=name)
    dataset = replace(benchmark.read(folder), name=name)
    differences = benchmark.differences(dataset)
    if differences:
        _log.warning("%s: not the size that is published: %s", folder, "; ".join(differences))
    return dataset


def _read_unknown(folder: Path) -> ReidDataset:
    if (folder / FOLDERS["train"]).is_dir():
        return read_market1501(folder)
    raise DataError(f"{folder}: not a data set; expected {', '.join(FOLDERS.values())} in it")


def _nearest(root: Path, name: str) -> str:
    """What the name was perhaps meant to be, of what is there and what is known."""
    try:
        there = [path.name for path in root.iterdir() if path.is_dir()]
    except OSError:
        there = []
    nearest = difflib.get_close_matches(name, sorted({*there, *BENCHMARKS} - {name}), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""
