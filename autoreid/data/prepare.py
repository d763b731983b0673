"""Prepare a data set from downloaded archives, and check that every image can be read."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from autoreid.data.datasets import BENCHMARKS, Counts, read_dataset, read_folder
from autoreid.data.decoding import decode
from autoreid.data.records import ReidDataset
from autoreid.data.unpack import unpack
from autoreid.errors import ConfigError, DataError, RunError
from autoreid.files import make_folder, write_atomically

#: Number of images checked in one batch of work.
_CHUNK = 4096


@dataclass(frozen=True)
class Findings:
    """A data set and the result of checking its images.

    Attributes:
        images: number of images.
        broken: a message for each broken image, with its path.
    """

    dataset: ReidDataset
    images: int
    broken: list[str]

    def lines(self) -> Iterator[str]:
        """Yield lines of text: sizes, differences from the published sizes, and broken images."""
        for split in (self.dataset.train, self.dataset.query, self.dataset.gallery):
            people, images, cameras = Counts.of(split)
            yield f"{split.name:8}{people:>8,} identities {images:>9,} images {cameras:>4} cameras"
        yield from (f"warning: {note}" for note in self.dataset.notes)
        yield from self.broken
        readable = f"{len(self.broken):,} broken" if self.broken else "all can be read"
        yield f"{self.images:,} images: {readable}"


def prepare_dataset(name: str, archives: Sequence[Path], root: Path) -> Findings:
    """Unpack archives, lay out the data set and check every image.

    All of this happens in a hidden folder next to the final one, which is renamed if no image is broken. If it
    is interrupted, the same call resumes there, unless the archives are different ones.

    Raises:
        ConfigError: the data set already exists, the folder is not writable, or a package is missing.
        DataError: an archive is broken or unsafe, or does not contain the data set.
        RunError: the disk is full.
    """
    benchmark = BENCHMARKS.get(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(
            f"{name!r}: not a valid data set name; expected one such as market1501 or my_people"
        )
    target = root / (benchmark.folders[0] if benchmark else name)
    if target.exists():
        raise ConfigError(
            f"{target}: already exists; use --check to check it, or remove it to prepare it again"
        )
    work = root / f".{target.name}.partial"
    _begin(work, archives)
    try:
        for archive in archives:
            unpack(archive, work / "unpacked")
    except DataError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if benchmark and benchmark.lay_out:
        try:
            benchmark.lay_out(work / "unpacked", work / "laid out")
        except OSError as error:
            raise RunError(f"{error.filename or work}: cannot lay out {name}: {error.strerror}") from error
    ready = next(folder for folder in (work / "laid out", work / "unpacked") if folder.exists())
    findings = check_images(read_folder(ready, name))
    if findings.broken:
        return findings
    ready.rename(target)
    shutil.rmtree(work)
    return replace(findings, dataset=read_folder(target, name))


def check_dataset(name: str, root: Path) -> Findings:
    """Read an existing data set and check every image; raises DataError if its layout is wrong."""
    return check_images(read_dataset(root, name))


def check_images(dataset: ReidDataset) -> Findings:
    """Decode every image of a data set, on all cores."""
    splits = (dataset.train, dataset.query, dataset.gallery)
    paths = np.unique(np.concatenate([split.paths for split in splits]).astype(str)).tolist()
    broken: list[str] = []
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        tqdm(total=len(paths), desc="checking images", unit="image", disable=None) as bar,
    ):
        for first in range(0, len(paths), _CHUNK):
            for problem in pool.map(_problem, paths[first : first + _CHUNK]):
                bar.update()
                if problem:
                    broken.append(problem)
    return Findings(dataset, len(paths), broken)


def _problem(path: str) -> str | None:
    try:
        decode(path)
    except DataError as error:
        return str(error)
    return None


def _begin(work: Path, archives: Sequence[Path]) -> None:
    """Create the hidden folder, or keep it if it was created for the same archives."""
    missing = [archive for archive in archives if not archive.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such file; expected an archive")
    stamps = [(archive.name, archive.stat().st_size, archive.stat().st_mtime_ns) for archive in archives]
    content = json.dumps(stamps).encode()
    begun = work / "archives.json"
    if not begun.exists() or begun.read_bytes() != content:
        shutil.rmtree(work, ignore_errors=True)
    make_folder(work, "choose another --root")
    write_atomically(begun, content)
