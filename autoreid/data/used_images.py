"""The images that a run uses, so that a resumed run can tell whether it would use others."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from autoreid.data.records import ReidDataset, Split
from autoreid.errors import DataError
from autoreid.files import write_atomically


class UsedImage(NamedTuple):
    """An image of a run.

    Attributes:
        use: "train", or the target and split that it is evaluated in.
        path: relative to the folder that all images of the same use are in, so that data sets may be moved.
    """

    use: str
    path: str
    identity: str
    camera: str


class UsedImages:
    """Which images a run uses, with their identities and cameras.

    Args:
        train: the training images of all sources, before identities are held out.
        targets: the data sets that the run is evaluated on, if they are not held out from `train`.
    """

    def __init__(self, train: Split, targets: Sequence[ReidDataset]) -> None:
        self._splits = {"train": train}
        for target in targets:
            self._splits |= {f"{target.name} query": target.query, f"{target.name} gallery": target.gallery}

    def __iter__(self) -> Iterator[UsedImage]:
        """Yield all images in the order of the data sets."""
        for use, split in self._splits.items():
            start = len(_common_folder(split.paths.tolist()))
            columns = (split.paths.tolist(), split.identities.tolist(), split.cameras.tolist())
            for path, identity, camera in zip(*columns, strict=True):
                yield UsedImage(use, path[start:], str(identity), str(camera))

    def digest(self) -> str:
        """Return the SHA-256 of all rows, in hexadecimal."""
        content = hashlib.sha256()
        for row in self:
            content.update("\t".join(row).encode(errors="surrogateescape") + b"\n")
        return content.hexdigest()

    def save(self, path: Path) -> None:
        """Write a CSV file atomically."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(UsedImage._fields)
        writer.writerows(self)
        write_atomically(path, text.getvalue().encode(errors="surrogateescape"))

    def differences_from(self, path: Path) -> str:
        """Describe how these images differ from those in a file that `save` has written."""
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                before = [UsedImage(*row) for row in csv.reader(file)][1:]
        except (OSError, TypeError, csv.Error):
            return f"{path.name} is not readable, so it is not known which"
        return _describe(before, list(self))


def _describe(before: Iterable[UsedImage], now: Iterable[UsedImage]) -> str:
    old, new = ({(row.use, row.path): row for row in rows} for rows in (before, now))
    removed = [old[key] for key in old if key not in new]
    added = [new[key] for key in new if key not in old]
    parts = [*_counted("removed", removed), *_counted("added", added), *_renamed(removed, added)]
    for what in ("identity", "camera"):
        changed = [key for key in old if key in new and getattr(old[key], what) != getattr(new[key], what)]
        if changed:
            use, path = changed[0]
            was, is_now = getattr(old[use, path], what), getattr(new[use, path], what)
            parts.append(
                f"{len(changed)} with another {what}, such as {use}: {path} ({what} {was}, is now {is_now})"
            )
    return "; ".join(parts) or "the order of the images"


def _counted(what: str, rows: Sequence[UsedImage]) -> list[str]:
    names = ", ".join(f"{row.use}: {row.path}" for row in rows[:2])
    return [f"{len(rows)} {what}, such as {names}"] if rows else []


def _renamed(removed: Sequence[UsedImage], added: Sequence[UsedImage]) -> list[str]:
    """Describe a folder that seems to have been renamed, because all paths differ in the same part."""
    differing = {
        tuple(pair)
        for one, other in zip(sorted(removed), sorted(added), strict=False)
        for pair in zip(PurePath(one.path).parts, PurePath(other.path).parts, strict=False)
        if pair[0] != pair[1]
    }
    if len(removed) != len(added) or len(differing) != 1:
        return []
    ((old, new),) = differing
    return [f"{old} seems to have been renamed to {new}"]


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder that all files are in, with its final slash."""
    if not paths:
        return ""
    # What the first and the last in alphabetical order share, all share.
    first, last = min(paths), max(paths)
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("/", 0, same) + 1]


def check_used_images(digest: str | None, used: UsedImages, file: Path) -> None:
    """Raise DataError if a run would resume with other images than it began with.

    Args:
        digest: of the images that the run began with; None for a checkpoint of an older version, which has none.
        used: the images that the run would use now.
        file: the list of the images that the run began with.
    """
    if digest not in (None, used.digest()):
        raise DataError(
            f"{file.parent}: the images are not those that the run began with: {used.differences_from(file)}; restore "
            f"the data, or set another task_name"
        )
