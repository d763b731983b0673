"""Data sets: published ones by name, and user folders.

The data set `name` is a folder below `data.root`. Each published one has its own reader, which knows the folder's
names, its layout and the published size.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from autoreid.data.datasets import grid, vehicleid, viper
from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.cuhk03 import CUHK03_DETECTED, CUHK03_LABELED
from autoreid.data.datasets.cuhk_sysu import CUHK_SYSU
from autoreid.data.datasets.dukemtmc import DUKEMTMC
from autoreid.data.datasets.image_list import CSV
from autoreid.data.datasets.listing import locate, passed_over_in
from autoreid.data.datasets.market1501 import FOLDERS, MARKET1501, MARKET1501_500K, read_market1501
from autoreid.data.datasets.msmt17 import MSMT17, MSMT17_V2
from autoreid.data.datasets.occluded_duke import OCCLUDED_DUKE
from autoreid.data.datasets.own_folder import read_own_folder
from autoreid.data.datasets.veri776 import VERI776
from autoreid.data.records import ReidDataset
from autoreid.errors import DataError

__all__ = ["BENCHMARKS", "Benchmark", "Counts", "read_dataset", "read_folder"]

BENCHMARKS: dict[str, Benchmark] = {
    "market1501": MARKET1501,
    "market1501_500k": MARKET1501_500K,
    "dukemtmc": DUKEMTMC,
    "occluded_duke": OCCLUDED_DUKE,
    "cuhk03_labeled": CUHK03_LABELED,
    "cuhk03_detected": CUHK03_DETECTED,
    "msmt17": MSMT17,
    "msmt17_v2": MSMT17_V2,
    "cuhk_sysu": CUHK_SYSU,
    **viper.SPLITS,
    **grid.SPLITS,
    "veri776": VERI776,
    **vehicleid.TESTS,
}


def read_dataset(root: Path, name: str) -> ReidDataset:
    """Read a published data set by name, or a folder in any known layout; opens no image.

    Raises:
        DataError: the folder does not exist or has another layout; the message says what was expected where, and
            suggests similar names.
    """
    names = BENCHMARKS[name].folders if name in BENCHMARKS else (name,)
    folder = next((root / name for name in names if (root / name).exists()), None)
    if folder is None:
        missing = root / names[0]
        raise DataError(f"{missing}: no such folder; expected the data set {name}{_nearest(root, name)}")
    return read_folder(folder, name)


def read_folder(folder: Path, name: str) -> ReidDataset:
    """Read the folder of a data set; a published one is recognised by `name` or by the folder's name.

    Raises:
        DataError: as in `read_dataset`; or it is no folder; or it may be one of several published data sets, and
            `name` is none of them.
    """
    if folder.name == CSV:
        raise DataError(f"{folder}: is a list; give the folder that it describes, {folder.parent}")
    if not folder.is_dir():
        raise DataError(
            f"{folder}: is a file; expected the folder of a data set; scripts/prepare_dataset.py makes one of an "
            f"archive"
        )
    benchmark = _benchmark_of(folder, name)
    if benchmark is None:
        inside = locate(folder, FOLDERS["train"])
        if not (inside / FOLDERS["train"]).is_dir():
            return replace(read_own_folder(folder), name=name)
        dataset = read_market1501(folder)
        passed = passed_over_in(inside / part for part in FOLDERS.values())
        return replace(dataset, name=name, notes=tuple(passed.notes()))
    dataset = benchmark.read(folder)
    differences = benchmark.differences(dataset)
    notes = (f"{folder}: differs from the published size: {'; '.join(differences)}",) if differences else ()
    return replace(dataset, name=name, notes=notes)


def _benchmark_of(folder: Path, name: str) -> Benchmark | None:
    own = folder.resolve().name
    if name in BENCHMARKS or own in BENCHMARKS:
        return BENCHMARKS.get(name) or BENCHMARKS[own]
    here = [known for known, benchmark in BENCHMARKS.items() if own in benchmark.folders]
    if len(here) > 1:
        raise DataError(f"{folder}: may be {' or '.join(here[:2])}; name one, as in {here[0]}={folder}")
    return BENCHMARKS[here[0]] if here else None


def _nearest(root: Path, name: str) -> str:
    """Return a suggestion of similar names among the existing folders and the published data sets."""
    try:
        there = [path.name for path in root.iterdir() if path.is_dir()]
    except OSError:
        there = []
    nearest = difflib.get_close_matches(name, sorted({*there, *BENCHMARKS} - {name}), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""
