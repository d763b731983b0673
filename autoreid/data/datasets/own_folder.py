"""User data sets, in one of three layouts.

    FOLDER/images.csv                                   one line per image: path, identity, camera and split
    FOLDER/train|query|gallery/IDENTITY/CAMERA/x.jpg    splits, with a folder per person and camera
    FOLDER/IDENTITY/CAMERA/x.jpg                        the same, for training only

Identities and cameras may have any names. In the gallery, the identity `distractor` matches no query, and `junk` is
ignored. Paths in images.csv are relative to the folder; without a column `split`, all images are for training.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoreid.data.datasets.listing import image_names, refuse_nobody
from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split
from autoreid.errors import DataError

_SPLITS = ("train", "query", "gallery")
_NOBODY = {"distractor": DISTRACTOR, "junk": JUNK}
_CSV = "images.csv"


class _Row(NamedTuple):
    split: str
    path: str
    identity: str
    camera: str


def read_own_folder(folder: Path) -> ReidDataset:
    """Read the list of images; opens no image.

    Identities and cameras are numbered in alphabetical order, over all splits.

    Raises:
        DataError: the folder has none of the layouts, or a line of images.csv is wrong; the message says where.
    """
    rows = list(_read_csv(folder / _CSV) if (folder / _CSV).exists() else _read_folders(folder))
    names = sorted({row.identity for row in rows} - _NOBODY.keys())
    people = {name: number for number, name in enumerate(names, start=1)} | _NOBODY
    cameras = {name: number for number, name in enumerate(sorted({row.camera for row in rows}), start=1)}
    train, query, gallery = (
        _split_of(name, [row for row in rows if row.split == name], people, cameras) for name in _SPLITS
    )
    for split in (train, query):
        refuse_nobody(split)
    return ReidDataset(folder.name, train, query, gallery.select(gallery.identities != JUNK))


def _split_of(name: str, rows: list[_Row], people: dict[str, int], cameras: dict[str, int]) -> Split:
    return Split(
        name,
        np.array([row.path for row in rows], dtype=object),
        np.array([people[row.identity] for row in rows], dtype=np.int64),
        np.array([cameras[row.camera] for row in rows], dtype=np.int64),
    )


def _read_folders(folder: Path) -> Iterator[_Row]:
    splits = [name for name in _SPLITS if (folder / name).is_dir()]
    for split in splits:
        yield from _read_people(folder / split, split)
    if not splits:
        yield from _read_people(folder, "train")


def _read_people(folder: Path, split: str) -> Iterator[_Row]:
    people = _folders_in(folder)
    if not people:
        raise DataError(
            f"{folder}: unknown layout; expected bounding_box_train, query and bounding_box_test as in Market-1501,"
            f" or {_CSV}, or folders IDENTITY/CAMERA with images"
        )
    for person in people:
        cameras = _folders_in(folder / person)
        if not cameras:
            raise DataError(
                f"{folder / person}: contains no folder; expected one per camera, with images of the person"
            )
        for camera in cameras:
            place = folder / person / camera
            for name in image_names(place, "images of one person from one camera"):
                yield _Row(split, str(place / name), person, camera)


def _folders_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_csv(file: Path) -> Iterator[_Row]:
    seen: dict[str, int] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            missing = {"path", "identity", "camera"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{file}:1: no column {min(missing)}; expected path, identity, camera and optionally split"
                )
            for line in reader:
                row = _parse_line(f"{file}:{reader.line_num}", file.parent, line)
                if row.path in seen:
                    raise DataError(
                        f"{file}:{reader.line_num}: duplicate of line {seen[row.path]}: {row.path}"
                    )
                seen[row.path] = reader.line_num
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot read the list: {error}") from error
    if not seen:
        raise DataError(f"{file}: contains no images")


def _parse_line(where: str, folder: Path, line: dict[str, str | None]) -> _Row:
    values = {key: (line.get(key) or "").strip() for key in ("path", "identity", "camera")}
    empty = [key for key, value in values.items() if not value]
    if empty:
        raise DataError(f"{where}: empty {empty[0]}")
    split = (line.get("split") or "").strip() if "split" in line else "train"
    if split not in _SPLITS:
        raise DataError(f"{where}: split {split!r}: must be train, query or gallery")
    path = os.path.normpath(folder / values["path"])
    return _Row(split, path, values["identity"], values["camera"])
