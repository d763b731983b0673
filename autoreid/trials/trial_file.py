"""The results of trials: a file with one line of JSON for each, to which several processes may append."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoreid.errors import RunError

#: The name of the file in the folder of a tournament or study.
NAME = "trials.jsonl"


class TrialFile:
    """The file `trials.jsonl` of a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the results by key. Of equal keys the first counts; incomplete lines are skipped."""
        results: dict[str, dict[str, Any]] = {}
        for result in read_lines(self.path):
            if isinstance(result.get("key"), str):
                results.setdefault(result["key"], result)
        return results

    def append(self, result: Mapping[str, Any]) -> None:
        """Append a result; raises RunError if the file cannot be written."""
        append_line(self.path, result)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one line of JSON for each, which need not exist; skips incomplete lines."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [content for content in map(_parse, lines) if isinstance(content, dict)]


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append a line of JSON in a single write, so that the lines of several processes never mix.

    Raises:
        RunError: the file cannot be written.
    """
    line = json.dumps(content) + "\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            # On most file systems a single append is atomic without the lock, but not the look at the last line.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_torn(descriptor):
                line = "\n" + line
            if os.write(descriptor, line.encode()) < len(line):  # json.dumps writes ASCII
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(f"{path}: cannot write the result: {error.strerror}") from error


def _is_torn(descriptor: int) -> bool:
    """Return whether the last line has no end, because its process was killed."""
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
