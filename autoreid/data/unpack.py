"""Archives that were downloaded, unpacked without trust: nothing leaves the folder, links nowhere, grows for ever."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from autoreid.errors import DataError, RunError

#: What broken archives make the standard library raise; OSError without a number too.
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
#: Files that are no archives, but belong to a data set: lists and MATLAB's.
PLAIN = (".mat", ".list", ".txt", ".csv")


@dataclass(frozen=True)
class Limits:
    """How large an archive may come out: images hardly shrink in one, but a bomb is a thousand times its size.

    Attributes:
        growth: bytes for each of the archive's.
        margin: further bytes.
        files: files.
    """

    growth: int = 20
    margin: int = 64 << 20
    files: int = 2_000_000


class _Member(NamedTuple):
    """A file in an archive; `problem` is why it must not be unpacked."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]
    problem: str | None


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpacks a zip or tar archive, or copies one of the PLAIN files; what is there at its whole size already stays.

    Raises:
        DataError: there is no such file, it is broken or no archive, or it holds a link, a path that leaves the
            folder, or more than the limits.
        RunError: the folder cannot be written, as when the disk is full.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if archive.suffix.lower() in PLAIN:
            _write(folder / archive.name, archive.stat().st_size, lambda: archive.open("rb"))
            return
        with archive.open("rb") as raw, _bar(archive) as bar:
            for member in _within(_members(raw), archive, limits or Limits()):
                _write(folder / PurePosixPath(member.name), member.size, member.open)
                bar.update(max(raw.tell() - bar.n, 0))
    except _BROKEN as error:
        raise _broken(archive, error) from error
    except OSError as error:
        if error.errno in (
            None,
            errno.EINVAL,
        ):  # a compression's own, or a place before the archive's beginning
            raise _broken(archive, error) from error
        raise RunError(f"{error.filename or folder}: cannot unpack {archive}: {error.strerror}") from error


def _bar(archive: Path) -> tqdm:
    size = archive.stat().st_size
    return tqdm(total=size, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, disable=None)


def _broken(archive: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{archive}: broken, or not a zip or tar archive: {reason}; download it again")


def _members(raw: IO[bytes]) -> Iterator[_Member]:
    if zipfile.is_zipfile(raw):
        with zipfile.ZipFile(raw) as zipped:
            yield from [_zip_member(zipped, info) for info in zipped.infolist() if not info.is_dir()]
        return
    raw.seek(0)
    with tarfile.open(fileobj=raw) as tarred:
        for info in tarred:
            if not info.isdir():
                problem = None if info.isreg() else "is a link or a device"
                yield _Member(info.name, info.size, partial(tarred.extractfile, info), problem)
        _check_end(tarred)


def _check_end(file: tarfile.TarFile) -> None:
    """Checks that the archive came to its end: at a broken block tarfile leaves off without a word."""
    content: IO[bytes] = file.fileobj  # type: ignore[assignment]
    content.seek(file.offset)
    block = content.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise EOFError("it ends before its end")
    while content.read(1 << 20):  # to where compressions keep their checksums
        pass


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    problem = None
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        problem = "is a link or a device"
    elif info.flag_bits & 1:
        problem = "needs a password"
    # Some programs on Windows write its own separators.
    name = info.filename.replace("\\", "/")
    return _Member(name, info.file_size, partial(file.open, info), problem)


def _within(members: Iterator[_Member], archive: Path, limits: Limits) -> Iterator[_Member]:
    """The members, each checked before it is unpacked."""
    allowed = limits.growth * archive.stat().st_size + limits.margin
    unpacked = 0
    for number, member in enumerate(members, start=1):
        path = PurePosixPath(member.name)
        problem = member.problem
        if path.is_absolute() or ".." in path.parts or not path.parts:
            problem = "would be written outside the folder"
        if problem:
            raise DataError(f"{archive}: {member.name!r} {problem}; this archive is not unpacked")
        unpacked += member.size
        if unpacked > allowed or number > limits.files:
            raise DataError(
                f"{archive}: comes out at more than {allowed:,} bytes or {limits.files:,} files,"
                " too much for an archive of its size; it is not unpacked"
            )
        yield member


def _write(path: Path, size: int, source: Callable[[], IO[bytes] | None]) -> None:
    """Writes a file whole or not at all; left as it is if it is there."""
    if path.is_file() and path.stat().st_size == size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    content = source()
    if content is None:
        raise EOFError(f"{path.name} has no content")
    with content, unfinished.open("wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
    if unfinished.stat().st_size != size:
        raise EOFError(f"{path.name} is cut short")
    unfinished.replace(path)
