"""User data sets, in one of three layouts.

    FOLDER/images.csv                                   one line per image: path, identity, camera and split
    FOLDER/train|query|gallery/IDENTITY/CAMERA/x.jpg    splits, with a folder per person and camera
    FOLDER/IDENTITY/CAMERA/x.jpg                        the same, for training only

Split folders may have any of the names in `SPLITS`, in upper or lower case. Identities and cameras may have any names.
In the gallery, the identities `distractor` and 0000 match no query, and `junk` and -1 are ignored. All this may be in a
subfolder, as in most archives.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoreid.data.datasets.image_list import CSV, SPLITS, Row, read_image_list
from autoreid.data.datasets.listing import PassedOver, content, folders_in, is_image, refuse_nobody
from autoreid.data.records import DISTRACTOR, JUNK, ReidDataset, Split
from autoreid.errors import DataError

_NOBODY = {"distractor": DISTRACTOR, "junk": JUNK, "0000": DISTRACTOR, "-1": JUNK}
_NESTED = "folders IDENTITY/CAMERA with images"

Entry = os.DirEntry[str]


class _SplitFolder(NamedTuple):
    split: str
    path: Path


def read_own_folder(folder: Path) -> ReidDataset:
    """Read the list of images; opens no image.

    Identities and cameras are numbered in alphabetical order, over all splits. Notes say what was skipped, which
    identities were not taken for people, and whether the layout seems to be another one.

    Raises:
        DataError: the folder has none of the layouts, has a single identity, or a line of images.csv is wrong; the
            message says where.
    """
    inside, passed = _locate(folder), PassedOver()
    notes: list[str] = []
    for entry in content(folder) if inside != folder else ():
        if not inside.is_relative_to(entry.path):
            passed.add(entry, "beside the folder of the data set")
    if (inside / CSV).exists():
        layout, rows = f"listed in {CSV}", list(read_image_list(inside / CSV, notes))
    else:
        layout, rows = f"read as {_NESTED}", list(_read_folders(inside, passed, notes))
    names = sorted({row.identity for row in rows} - _NOBODY.keys())
    people = {name: number for number, name in enumerate(names, start=1)} | _NOBODY
    cameras = {name: number for number, name in enumerate(sorted({row.camera for row in rows}), start=1)}
    train, query, gallery = (
        _split_of(name, [row for row in rows if row.split == name], people, cameras)
        for name in ("train", "query", "gallery")
    )
    for split in (train, query):
        refuse_nobody(split)
    notes += [*passed.notes(), *_nobody_notes(folder, rows)]
    # In a list, each image may have a camera of its own, as the docs advise for people seen by one camera.
    images = Counter({row.path: row.camera for row in rows}.values())
    shared = [camera for camera in cameras if images[camera] > 1] if (inside / CSV).exists() else [*cameras]
    distractors = bool((gallery.identities == DISTRACTOR).any())
    notes += _check_layout(f"{folder}: {layout}", names, shared, distractors)
    return ReidDataset(folder.name, train, query, gallery.select(gallery.identities != JUNK), tuple(notes))


def _split_of(name: str, rows: list[Row], people: dict[str, int], cameras: dict[str, int]) -> Split:
    return Split(
        name,
        np.array([row.path for row in rows], dtype=object),
        np.array([people[row.identity] for row in rows], dtype=np.int64),
        np.array([cameras[row.camera] for row in rows], dtype=np.int64),
    )


def _locate(folder: Path) -> Path:
    """Return the folder with images.csv, splits or people: `folder` itself, or one inside.

    Raises:
        DataError: two subfolders have images.csv or splits.
    """
    below = folders_in(folder)
    if _is_data_set(folder) or not below:
        return folder
    found = [folder / name for name in below if _is_data_set(folder / name)]
    if len(found) > 1:
        raise DataError(
            f"{folder}: both {found[0].name} and {found[1].name} contain {CSV} or splits; keep one of them, or "
            f"make each a data set"
        )
    if found:
        return found[0]
    only = folder / below[0]
    is_wrapper = len(below) == 1 and any(folders_in(only / name) for name in folders_in(only))
    return _locate(only) if is_wrapper else folder


def _is_data_set(folder: Path) -> bool:
    return (folder / CSV).exists() or bool(_split_folders(folder))


def _split_folders(folder: Path) -> list[_SplitFolder]:
    """Return the split folders; `val` alone is none, but may be a person's name.

    Raises:
        DataError: two folders are the same split.
    """
    found = [
        _SplitFolder(SPLITS[name.lower()], folder / name)
        for name in folders_in(folder)
        if name.lower() in SPLITS
    ]
    if all(path.name.lower() == "val" for _, path in found):
        return []
    # Some data sets have test/query and test/gallery.
    found = [
        one
        for outer in found
        for one in ((outer.path.name.lower() == "test" and _split_folders(outer.path)) or [outer])
    ]
    by_split: dict[str, Path] = {}
    for split, path in found:
        other = by_split.setdefault(split, path)
        if other is not path and {other.name.lower(), path.name.lower()} != {"train", "val"}:
            raise DataError(
                f"{folder}: both {other.name} and {path.name} are the {split} images; keep one of them"
            )
    return found


def _read_folders(folder: Path, passed: PassedOver, notes: list[str]) -> Iterator[Row]:
    splits = _split_folders(folder)
    for split, path in splits:
        if path.name.lower() == "val":
            notes.append(f"{path}: used for training")
        yield from _read_people(path, split, passed)
    if not splits:
        yield from _read_people(folder, "train", passed)
        return
    known = {path for _, path in splits} | {path.parent for _, path in splits}
    for entry in content(folder):
        if Path(entry.path) not in known:
            passed.add(entry, "beside the folders of the splits")


def _read_people(folder: Path, split: str, passed: PassedOver) -> Iterator[Row]:
    """Yield the images of one split."""
    rows = [
        Row(split, image.path, person.name, camera.name)
        for person in _sorted_folders(content(folder), "not in a folder of a person and a camera", passed)
        for camera in _cameras_of(person, passed)
        for image in _images_of(camera, passed)
    ]
    if not rows:
        expected = (
            f"bounding_box_train, query and bounding_box_test as in Market-1501, or {CSV}, or {_NESTED}"
        )
        raise DataError("; ".join([f"{folder}: unknown layout", f"expected {expected}", *passed.notes()]))
    yield from rows


def _sorted_folders(entries: Sequence[Entry], reason: str, passed: PassedOver) -> list[Entry]:
    """Return those entries that are folders; count the others."""
    for entry in entries:
        if not entry.is_dir():
            passed.add(entry, reason)
    return [entry for entry in entries if entry.is_dir()]


def _cameras_of(person: Entry, passed: PassedOver) -> list[Entry]:
    """Return the folders of a person's cameras."""
    entries = content(person.path)
    cameras = _sorted_folders(entries, "not in a folder of a camera", passed)
    if not cameras and any(map(is_image, entries)):
        raise DataError(
            f"{person.path}: contains no folder; expected one per camera, with images of the person"
        )
    if not cameras:
        passed.add(person, "a person without images")
    return cameras


def _images_of(camera: Entry, passed: PassedOver) -> list[Entry]:
    """Return the images in the folder of a person and a camera."""
    images = [entry for entry in content(camera.path) if passed.keeps(entry)]
    if not images:
        passed.add(camera, "a camera without images")
    return images


def _nobody_notes(folder: Path, rows: Sequence[Row]) -> Iterator[str]:
    """Say which of Market-1501's names for distractors and junk were found, because they could be people."""
    for name, meaning in (("0000", "distractors, who match no query"), ("-1", "junk, which is ignored")):
        count = sum(row.identity == name for row in rows if row.split == "gallery")
        if count:
            yield f"{folder}: the {count} gallery images of {name} are {meaning}, as in Market-1501"


def _check_layout(
    where: str, people: Sequence[str], cameras: Sequence[str], distractors: bool
) -> Iterator[str]:
    """Warn if people and cameras seem to be swapped or one level off; `where` names folder and layout.

    Raises:
        DataError: there is a single identity, which cannot be told from anybody.
    """
    example = f"identities: {len(people)}, such as {people[0]}; " if people else "no identity; "
    example += f"cameras: {len(cameras)}" + (f", such as {cameras[0]}" if cameras else "")
    question = "are people and cameras swapped, or is a level of folders missing?"
    if len(people) < 2 and not distractors:
        raise DataError(f"{where}: {example}; expected two identities or more; {question}")
    if len(people) < len(cameras):
        yield f"{where}: {example}; {question}"
