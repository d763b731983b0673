"""The list of a user's images, images.csv: one line per image with path, identity, camera and split."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autoreid.errors import DataError

CSV = "images.csv"
#: Names of splits, in lower case, as folders and in images.csv.
SPLITS = {
    "train": "train",
    "val": "train",
    "query": "query",
    "probe": "query",
    "gallery": "gallery",
    "test": "gallery",
}


class Row(NamedTuple):
    """An image with the names of its identity and its camera."""

    split: str
    path: str
    identity: str
    camera: str


def read_image_list(file: Path, notes: list[str]) -> Iterator[Row]:
    """Yield the lines of images.csv; paths are relative to its folder. Without `split`, all images are for training.

    An image may be listed twice, as query and as gallery, with the same identity and camera.

    Args:
        notes: a note is added if images of the split `val` are used for training.

    Raises:
        DataError: a line is wrong; the message says which.
    """
    seen: dict[str, tuple[Row, int]] = {}
    validation = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            missing = {"path", "identity", "camera"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{file}:1: no column {min(missing)}; expected path, identity, camera and optionally split"
                )
            for line in reader:
                where = f"{file}:{reader.line_num}"
                row = _parse(where, file.parent, line)
                if row.path in seen:
                    _check_second(where, row, *seen[row.path])
                seen[row.path] = (row, reader.line_num)
                validation += (line.get("split") or "").strip().lower() == "val"
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot read the list: {error}") from error
    if not seen:
        raise DataError(f"{file}: contains no images")
    if validation:
        notes.append(f"{file}: the {validation} images of split val are used for training")


def _parse(where: str, folder: Path, line: dict[str, str | None]) -> Row:
    values = {key: (line.get(key) or "").strip() for key in ("path", "identity", "camera")}
    empty = [key for key, value in values.items() if not value]
    if empty:
        raise DataError(f"{where}: empty {empty[0]}")
    split = (line.get("split") or "").strip() if "split" in line else "train"
    if split.lower() not in SPLITS:
        raise DataError(
            f"{where}: split {split!r}: must be train (or val), query (or probe) or gallery (or test)"
        )
    path = os.path.normpath(folder / values["path"])
    return Row(SPLITS[split.lower()], path, values["identity"], values["camera"])


def _check_second(where: str, row: Row, before: Row, line: int) -> None:
    """Check a line for an image that an earlier line lists already."""
    if {row.split, before.split} != {"query", "gallery"}:
        raise DataError(
            f"{where}: duplicate of line {line}: {row.path}; only a query may be listed again, in the gallery"
        )
    if row[1:] != before[1:]:
        raise DataError(
            f"{where}: {row.path} has another identity or camera in line {line}: must be the same"
        )
