"""Files: atomic writes (under a temporary name, then renamed), and a check of archives."""

from __future__ import annotations

import contextlib
import os
import uuid
import zipfile
from pathlib import Path

from autoreid.errors import ConfigError, RunError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a kill or a power failure it has either the old content or the new.

    Processes that write the same file at the same time do not disturb each other: the last one counts.

    Raises:
        RunError: the file cannot be written (full disk, missing folder); the message names the path, and the old
            file is not changed.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RunError(f"{path}: cannot write the file: {error.strerror}") from error


def make_folder(folder: Path, remedy: str) -> None:
    """Create a folder and its parents; raises ConfigError with the remedy if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot create the folder: {error.strerror}; {remedy}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: the folder is not writable; {remedy}")


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entries to disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def damage_of_archive(path: Path) -> str | None:
    """Check all CRC-32 checksums of a zip archive, such as a file of torch.save, whose reader ignores them.

    Returns:
        How the archive is damaged; None if it is whole, was written without checksums, or is not a zip archive.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
    try:
        with zipfile.ZipFile(path) as archive:
            if not any(record.CRC for record in archive.infolist()):
                return None
            record = archive.testzip()
    except Exception as error:  # on damaged archives, zipfile raises almost any exception
        return f"it is incomplete, or its index is wrong ({str(error) or type(error).__name__})"
    return None if record is None else f"{record} has a wrong checksum"
