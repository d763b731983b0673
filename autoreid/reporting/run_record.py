"""Open a run folder, and record in its history that the run starts, and how it ends if it fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from autoreid.checkpoint import CheckpointFolder
from autoreid.cli import describe
from autoreid.config import Config
from autoreid.errors import AutoreidError, PeerError, RunError, StoppedError, complain, launched_rank
from autoreid.reporting.history import Kind, read_history, record
from autoreid.reporting.logs import start_logging
from autoreid.reporting.run_folder import RunFolder

_log = logging.getLogger(__name__)

#: How long another rank waits for rank 0 to record an error, which most often all ranks raise.
REPORT_SECONDS = 2.0


@contextmanager
def open_run(config: Config, may_differ: Collection[str] = ()) -> Iterator[RunFolder]:
    """Open the folder of a run and the log of this rank, record the start, and in case of an error the end.

    This needs no process group: errors while the ranks contact each other are recorded, too. Rank 0 claims and locks
    the folder.

    Args:
        may_differ: see `RunFolder.claim`.

    Raises:
        ConfigError: the folder belongs to another config, or another process runs it. This is not recorded.
    """
    folder = RunFolder(config.output_dir / config.task_name)
    rank = launched_rank()
    if rank == 0:
        folder.create()
    with folder.lock() if rank == 0 else nullcontext():
        if rank == 0:
            folder.claim(config, may_differ)
        with recorded_end(folder.root, rank):
            start_logging(folder.logs, rank)
            if rank == 0:
                record_start(folder)
            yield folder


def record_start(folder: RunFolder) -> None:
    """Record that a run starts, from its newest checkpoint. A history that cannot be written stops no run."""
    step = max(CheckpointFolder(folder.checkpoints, keep_last=1).steps(), default=0)
    try:
        record(folder.root, "started", step)
    except RunError as error:
        _log.warning("%s", error)


@contextmanager
def recorded_end(run: Path, rank: int = 0) -> Iterator[None]:
    """Record an error that is raised in the `with` block.

    Rank 0 speaks for all ranks. Another rank records and prints its error if rank 0 does not have it.
    """
    before = len(read_history(run))
    try:
        yield
    except KeyboardInterrupt:
        if rank == 0:
            _record(run, "stopped", "SIGINT")
        raise
    except StoppedError as error:
        # After SIGTERM, the exit status of the other ranks decides: srun sends it to all ranks if one has failed.
        if rank == 0 and error.signal != "SIGTERM":
            _record(run, "stopped", error.signal)
        raise
    except Exception as error:
        message = describe(error)
        # What another rank has done to this one, and what nobody expected, may not happen again.
        repeats = isinstance(error, AutoreidError) and not isinstance(error, PeerError)
        if rank:
            is_reported = _is_reported(run, before, error)
            if isinstance(error, AutoreidError):
                error.is_reported = True
            if is_reported:
                raise
            complain(message, on_every_rank=True)
            message = f"rank {rank}: {message}"
        status = error.exit_status if isinstance(error, AutoreidError) else 1
        _record(run, "failed" if repeats else "crashed", message, status)
        raise


def _record(run: Path, kind: Kind, reason: str, status: int | None = None) -> None:
    with suppress(RunError):  # the disk may be full
        record(run, kind, reason=reason, status=status)


def _is_reported(run: Path, before: int, error: Exception) -> bool:
    """Return whether rank 0 reports this rank's error, or one of its own, after the first `before` events."""
    if isinstance(error, AutoreidError) and error.is_reported:
        return True
    deadline = time.monotonic() + REPORT_SECONDS
    while not any(event.kind in ("failed", "crashed") for event in read_history(run)[before:]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
