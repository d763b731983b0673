"""Unpack downloaded archives that are not trusted, with the path checks of `tarfile` and `zipfile`.

zipfile removes leading slashes and ".." from names; tarfile's data filter refuses paths outside the folder. Added
here: sizes are limited, links are refused, truncated archives are noticed, and existing files are not unpacked again.
"""

from __future__ import annotations

import errno
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from autoreid.errors import DataError, RunError

#: What the standard library raises on broken archives, besides some OSErrors.
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
#: Errors for which the archive is to blame: a compression's own, a seek before its start, a file used as a folder.
_BROKEN_ERRNO = (None, errno.EINVAL, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
#: Suffixes of files that belong to a data set without being archives: lists and MATLAB files.
PLAIN = (".mat", ".list", ".txt", ".csv")


@dataclass(frozen=True)
class Limits:
    """The maximum size of an unpacked archive; images barely shrink, whereas a zip bomb shrinks by a factor of 1000.

    Attributes:
        growth: bytes for each byte of the archive.
        margin: additional bytes.
        files: number of files.
    """

    growth: int = 20
    margin: int = 64 << 20
    files: int = 2_000_000


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpack a zip or tar archive, or copy one of the PLAIN files; existing files of the right size are kept.

    Raises:
        DataError: the archive does not exist, is broken or of another format, contains a link or a path outside the
            folder, or exceeds the limits.
        RunError: the folder cannot be written, for example because the disk is full.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if archive.suffix.lower() in PLAIN:
            if not _complete(folder / archive.name, archive.stat().st_size):
                shutil.copyfile(archive, folder / archive.name)
            return
        with archive.open("rb") as raw, _bar(archive) as bar:
            unpack_format = _unpack_zip if zipfile.is_zipfile(raw) else _unpack_tar
            raw.seek(0)
            room = _Room(archive, limits or Limits())
            for _ in unpack_format(raw, folder, room):
                bar.update(max(raw.tell() - bar.n, 0))
    except (tarfile.OutsideDestinationError, tarfile.AbsolutePathError) as error:
        raise DataError(f"{archive}: refused, because {error}") from error
    except _BROKEN as error:
        raise _broken(archive, error) from error
    except OSError as error:
        if error.errno in _BROKEN_ERRNO:
            raise _broken(archive, error) from error
        raise RunError(f"{error.filename or folder}: cannot unpack {archive}: {error.strerror}") from error


class _Room:
    """Counts files and bytes before they are unpacked."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive, self.limits = archive, limits
        self.allowed = limits.growth * archive.stat().st_size + limits.margin
        self.unpacked = self.files = 0

    def take(self, size: int) -> None:
        """Count a file of `size` bytes; raises DataError if the limits are exceeded."""
        self.unpacked, self.files = self.unpacked + size, self.files + 1
        if self.unpacked > self.allowed or self.files > self.limits.files:
            raise DataError(
                f"{self.archive}: refused, because it unpacks to more than {self.allowed:,} bytes or "
                f"{self.limits.files:,} files, too much for an archive of its size"
            )


def _unpack_zip(raw: IO[bytes], folder: Path, room: _Room) -> Iterator[None]:
    """Unpack a zip archive; yields after each file."""
    with zipfile.ZipFile(raw) as file:
        for info in file.infolist():
            # Some programs for Windows write its path separator.
            info.filename = info.filename.replace("\\", "/")
            if not info.is_dir():
                room.take(info.file_size)
                if not _complete(folder / info.filename, info.file_size):
                    file.extract(info, folder)
                yield


def _unpack_tar(raw: IO[bytes], folder: Path, room: _Room) -> Iterator[None]:
    """Unpack a tar archive with any compression; yields after each file."""
    with tarfile.open(fileobj=raw) as file:
        for info in file:
            if info.isdir():
                continue
            if not info.isreg():
                raise DataError(f"{room.archive}: refused, because {info.name!r} is a link or a device")
            room.take(info.size)
            if not _complete(folder / info.name, info.size):
                file.extract(info, folder, set_attrs=False, filter="data")
            yield
        _check_end(file)


def _check_end(file: tarfile.TarFile) -> None:
    """Raise EOFError unless the archive has its end marker: tarfile silently stops at a broken header."""
    content: IO[bytes] = file.fileobj  # type: ignore[assignment]
    content.seek(file.offset)
    block = content.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise EOFError("it is truncated")
    while content.read(1 << 20):  # up to the end, where compressed files have their checksums
        pass


def _complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _bar(archive: Path) -> tqdm:
    size = archive.stat().st_size
    return tqdm(total=size, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, disable=None)


def _broken(archive: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{archive}: broken, or not a zip or tar archive: {reason}; download it again")
