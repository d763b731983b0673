"""Bring the mirror of a run up to date: write what it lacks, once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoreid.errors import AutoreidError, ConfigError, RunError, first_line
from autoreid.files import write_atomically
from autoreid.mirrors.content import RunContent, read_run
from autoreid.mirrors.mirror import Mirror, Point, Update
from autoreid.reporting.run_folder import flatten

_log = logging.getLogger(__name__)

#: The file in a run folder that says how much of the run each mirror has.
FILE = "mirrors.json"
#: Metrics that differ when a resumed run computes an epoch again.
TIMINGS = ("images_per_second", "data_wait")


@dataclass(frozen=True)
class Progress:
    """How much of a run a mirror has.

    Attributes:
        run_id: the id of the run in the store.
        records: number of records.
        digest: of these records, without timings.
        result: digest of the result, which is empty while the run has not finished.
        began: when an update began that has not ended, because its process was killed or the store failed.
    """

    run_id: str
    records: int = 0
    digest: str = ""
    result: str = ""
    began: float | None = None


def update_mirror(folder: Path, mirror: Mirror) -> int:
    """Write to a mirror what it lacks of a run.

    If the run has gone back to an earlier checkpoint and has computed mirrored epochs again, with other values, it is
    mirrored anew under another id, with a warning.

    Returns:
        The number of new records.

    Raises:
        ConfigError: the run's config is not valid, or another process updates a mirror of this run.
        RunError: the store or the progress cannot be written.
    """
    with _locked(folder):
        run, progress = read_run(folder), _read_progress(folder).get(mirror.destination)
        if progress is not None and progress.records > len(run.records):
            return 0  # a resumed run still computes records that the mirror has
        if progress is not None and progress.digest != _digest_of(run, progress.records):
            _log.warning(
                "%s: the run has computed epochs again that %s has with other values; it is mirrored anew, and the run "
                "%s there can be deleted",
                folder,
                mirror.destination,
                progress.run_id,
            )
            progress = None
        if progress is not None and _is_complete(run, progress):
            return 0
        try:
            return _write(run, mirror, progress)
        except AutoreidError:
            raise
        except Exception as error:  # whatever the tracker's package raises
            raise RunError(f"{folder}: cannot write to {mirror.destination}: {first_line(error)}") from error


def _write(run: RunContent, mirror: Mirror, before: Progress | None) -> int:
    """Write what a mirror lacks of a run, and record its progress before and after."""
    begun = before or Progress(mirror.create(run), digest=_digest([]))
    begun = replace(begun, began=begun.began or time.time())
    if run.config.task == "search" and run.records and not begun.records and not run.genotypes.is_dir():
        _log.warning(
            "%s: the pictures of its genotypes are not copied, because there is no folder %s",
            run.folder,
            run.genotypes,
        )
    _save_progress(run.folder, mirror.destination, begun)
    mirror.write(begun.run_id, run, _update(run, begun))
    count = len(run.records)
    done = Progress(begun.run_id, count, _digest_of(run, count), _digest([run.result]))
    _save_progress(run.folder, mirror.destination, done)
    return count - begun.records


def _is_complete(run: RunContent, progress: Progress) -> bool:
    return (progress.records, progress.result) == (len(run.records), _digest([run.result]))


def _update(run: RunContent, progress: Progress) -> Update:
    """Return what a mirror lacks of a run."""
    points = []
    for step, record in list(run.records.items())[progress.records :]:
        values = {key: value for key, value in record.items() if key != "step"}
        points.append(Point(step, values, run.pictures(record["epoch"])))
    assert progress.began is not None  # noqa: S101
    return Update(points, dict(flatten(run.result, "")), max(run.records, default=0), progress.began)


def _digest_of(run: RunContent, count: int) -> str:
    """Return the digest of the first records of a run, without timings."""
    records = list(run.records.values())[:count]
    return _digest(
        [{key: value for key, value in record.items() if key not in TIMINGS} for record in records]
    )


def _digest(contents: Sequence[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _read_progress(folder: Path) -> dict[str, Progress]:
    """Return the progress of each mirror of a run by its destination."""
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        return {destination: Progress(**progress) for destination, progress in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot read how far the mirrors are: {first_line(error)}; delete the file to mirror the run anew"
        ) from error


def _save_progress(folder: Path, destination: str, progress: Progress) -> None:
    every = _read_progress(folder) | {destination: progress}
    content = {destination: asdict(progress) for destination, progress in every.items()}
    write_atomically(folder / FILE, (json.dumps(content, indent=1) + "\n").encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other process update the mirrors of a run during a `with` block."""
    path = folder / "mirrors.lock"
    try:
        opened = path.open("a")
    except OSError as error:
        raise RunError(
            f"{path}: cannot open the lock: {error.strerror}; the run folder must be writable, because {FILE} is there"
        ) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: another process mirrors this run") from error
        except OSError as error:  # the file system has no locks
            _log.warning("%s: cannot lock the mirrors: %s", folder, error.strerror)
        yield
