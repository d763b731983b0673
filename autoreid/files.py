"""Files that a run must not leave half-written: made whole beside their place, then moved there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from autoreid.errors import ConfigError, RunError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a kill or a power cut leaves the old bytes or the new ones, never a part.

    Raises RunError that names the path when it cannot be written (a full disk, a missing folder); the old
    file then stays as it was.
    """
    partial = path.with_name(path.name + ".partial")
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
    """Makes a folder with its parents; raises ConfigError with the remedy if files cannot be put in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot make the folder: {error.strerror}; {remedy}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: the folder is not writable; {remedy}")


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
