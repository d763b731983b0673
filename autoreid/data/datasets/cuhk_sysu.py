"""CUHK-SYSU (Xiao et al., "Joint Detection and Identification", CVPR 2017), for training only.

    FOLDER/cropped_images/p11422_s16929_1.jpg    person, scene that shows the person, running number

It has no camera numbers, so every image gets camera 1, and no identity can be held out. The authors publish whole
scenes, Image/SSM/s16929.jpg, and annotation/Person.mat with the boxes of the people; 11,934 people are identified.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from autoreid.data.datasets.benchmark import Benchmark, Counts
from autoreid.data.datasets.listing import empty_split, image_names, locate, split_of
from autoreid.data.datasets.mat import load_mat
from autoreid.data.decoding import decode
from autoreid.data.records import ReidDataset
from autoreid.errors import DataError

_CROPS = "cropped_images"
_NAME = re.compile(r"p(\d+)_s\d+_\d+\.")


def _read(folder: Path) -> ReidDataset:
    images = locate(folder, _CROPS) / _CROPS
    files = image_names(images, "CUHK-SYSU's people, such as p11422_s16929_1.jpg")
    numbers = []
    for file in files:
        match = _NAME.match(file)
        if match is None:
            raise DataError(f"{images / file}: invalid file name; expected one such as p11422_s16929_1.jpg")
        numbers.append((int(match[1]) + 1, 1))
    train = split_of("train", images, files, numbers)
    return ReidDataset(folder.name, train, empty_split("query"), empty_split("gallery"))


def crop_people(unpacked: Path, target: Path) -> None:
    """Crop the annotated people from the scenes and write them to the target; without scenes, nothing is done.

    Existing crops are kept.

    Raises:
        ConfigError: scipy is not installed.
        DataError: the annotation or a scene is broken; the message names the file.
    """
    annotation = next(unpacked.rglob("annotation/Person.mat"), None)
    if annotation is None:
        return
    scenes = annotation.parents[1] / "Image" / "SSM"
    crops_folder = target / _CROPS
    crops_folder.mkdir(parents=True, exist_ok=True)
    by_scene: dict[str, list[tuple[Path, tuple[int, ...]]]] = defaultdict(list)
    for name, scene, box in _annotated(annotation):
        by_scene[scene].append((crops_folder / name, box))
    for scene, crops in tqdm(by_scene.items(), desc="cropping people", unit="scene", disable=None):
        missing = [(path, box) for path, box in crops if not path.exists()]
        if missing:
            _crop(decode(scenes / scene), missing)


def _annotated(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield for each appearance of a person: crop file name, scene file name, and (left, top, width, height)."""
    try:
        for person in np.atleast_1d(load_mat(file)["Person"]):
            for number, scene in enumerate(np.atleast_1d(person["scene"]), start=1):
                name, box = Path(str(scene["imname"])), _box(scene["idlocate"])
                yield f"{person['idname']}_{name.stem}_{number}.jpg", name.name, box
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(f"{file}: broken, or not CUHK-SYSU's annotation of people: {error!r}") from error


def _box(place: Any) -> tuple[int, ...]:
    left, top, width, height = (int(value) for value in place)
    return left, top, width, height


def _crop(scene: Image.Image, crops: list[tuple[Path, tuple[int, ...]]]) -> None:
    for path, (left, top, width, height) in crops:
        right, bottom = min(left + width, scene.width), min(top + height, scene.height)
        partial = path.with_suffix(".partial")
        scene.crop((max(left, 0), max(top, 0), right, bottom)).save(partial, "JPEG", quality=95)
        partial.rename(path)


CUHK_SYSU = Benchmark(
    ("cuhk_sysu", "CUHK-SYSU", "cuhksysu", "cuhk-sysu"),
    _read,
    {"train": Counts(11_934, 34_574, 1)},
    crop_people,
)
