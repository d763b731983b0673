"""CUHK03 (Li et al., "DeepReID", CVPR 2014), new protocol (Zhong et al., CVPR 2017): 767 and 700 people.

    FOLDER/labeled/bounding_box_train/...     people cropped by hand, in the layout of Market-1501,
    FOLDER/detected/bounding_box_train/...    by a detector         in which CUHK03-NP is distributed

The authors publish the images in cuhk-03.mat, an HDF5 file that is read with h5py, and the protocol in
cuhk03_new_protocol_config_labeled.mat and ..._detected.mat.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import locate
from autoreid.data.datasets.market1501 import FOLDERS, read_market1501
from autoreid.data.datasets.mat import load_mat
from autoreid.data.records import ReidDataset
from autoreid.errors import ConfigError, DataError

_IMAGES = "cuhk-03.mat"
_KINDS = ("labeled", "detected")


def _read(kind: str, folder: Path) -> ReidDataset:
    return read_market1501(locate(folder, kind) / kind)


def extract_images(unpacked: Path, target: Path) -> None:
    """Write the images of cuhk-03.mat to the target as PNG files, split by the protocols that were given.

    Existing images are kept. If there is no cuhk-03.mat, nothing is done.

    Raises:
        ConfigError: h5py or scipy is not installed.
        DataError: there is no protocol, a file is broken, or a protocol names an unknown image.
    """
    images = next(unpacked.rglob(_IMAGES), None)
    if images is None:
        return
    protocols = {
        kind: next(unpacked.rglob(f"cuhk03_new_protocol_config_{kind}.mat"), None) for kind in _KINDS
    }
    if not any(protocols.values()):
        raise DataError(
            f"{images}: the protocol is missing; add --archive cuhk03_new_protocol_config_labeled.mat or"
            " --archive cuhk03_new_protocol_config_detected.mat"
        )
    try:
        import h5py
    except ImportError as error:
        raise ConfigError(
            f"{images}: reading this file requires h5py: pip install 'autoreid[mat]'"
        ) from error
    try:
        content = h5py.File(images, "r")
    except OSError as error:
        raise DataError(f"{images}: broken, or not the images of CUHK03: {error}") from error
    with content as file:
        for kind, protocol in protocols.items():
            if protocol is not None:
                _extract(partial(_picture, file, kind), protocol, target / kind)


def _extract(picture: Callable[[str], npt.NDArray[np.uint8]], protocol: Path, folder: Path) -> None:
    """Write the images that a protocol names, by split."""
    content = load_mat(protocol)
    try:
        names = [str(name) for name in np.atleast_1d(content["filelist"])]
        people, cameras = (np.atleast_1d(content[key]).astype(int) for key in ("labels", "camId"))
        parts = {split: np.atleast_1d(content[f"{split}_idx"]).astype(int) - 1 for split in FOLDERS}
        rows = [
            (FOLDERS[split], names[index], people[index], cameras[index])
            for split, indices in parts.items()
            for index in indices
        ]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f"{protocol}: broken, or not the new protocol of CUHK03: {error!r}") from error
    for part, name, person, camera in tqdm(rows, desc=f"writing {folder.name}", unit="image", disable=None):
        path = folder / part / f"{person:04d}_c{camera}_{Path(name).stem}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".partial")
            Image.fromarray(picture(name)).save(unfinished, "PNG")
            unfinished.rename(path)


def _picture(file: Any, kind: str, name: str) -> npt.NDArray[np.uint8]:
    """Return an (H, W, 3) image by its name: camera pair, person in that pair, camera, number from 1 to 10."""
    try:
        pair, person, _, number = (int(part) for part in Path(name).stem.split("_"))
        # h5py reads MATLAB's arrays with their axes reversed.
        of_pair = file[file[kind][0, pair - 1]]
        image = file[of_pair[number - 1, person - 1]][:].T
    except (OSError, KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f"{file.filename}: broken at {kind} image {name}: {error}") from error
    if image.ndim != 3:
        raise DataError(f"{file.filename}: contains no {kind} image {name}, which the protocol names")
    return np.ascontiguousarray(image)


def _benchmark(kind: str, train: int, gallery: int) -> Benchmark:
    published = {
        "train": Counts(767, train, 2),
        "query": Counts(700, 1_400, 2),
        "gallery": Counts(700, gallery, 2),
    }
    return Benchmark(
        ("cuhk03", "cuhk03-np", "CUHK03-NP"), partial(_read, kind), published, extract_images, "cuhk03"
    )


CUHK03_LABELED = _benchmark("labeled", 7_368, 5_328)
CUHK03_DETECTED = _benchmark("detected", 7_365, 5_332)
