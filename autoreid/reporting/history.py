"""The history of a run in history.jsonl: one event per line.

A run can span many processes and jobs. Each of them records its start and its end; a start without an end means that
the process was killed. An error that would happen again ends a run as "failed", any other error as "crashed". Several
processes may append lines, so each line is short and appended in a single write.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from autoreid.errors import RunError

Kind = Literal["submitted", "started", "stopped", "requeued", "finished", "failed", "crashed"]

FILE = "history.jsonl"


class Event(NamedTuple):
    """One event of a run.

    Attributes:
        kind: what happened.
        seconds: time of the event, in seconds since the Unix epoch.
        host: name of the machine.
        job: Slurm's job id, as shown by squeue; None outside Slurm.
        restart: how often Slurm had restarted the job.
        step: number of completed steps of the run; None if unknown.
        reason: reason of the event, for example the error message.
        status: exit status of the process that failed or crashed.
    """

    kind: Kind
    seconds: float
    host: str
    job: str | None = None
    restart: int = 0
    step: int | None = None
    reason: str = ""
    status: int | None = None


def current_job() -> tuple[str | None, int]:
    """Return the id of the Slurm job of this process, or None, and how often the job was restarted."""
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def record(
    run: Path,
    kind: Kind,
    step: int | None = None,
    reason: str = "",
    job: tuple[str | None, int] | None = None,
    status: int | None = None,
) -> None:
    """Append an event to the history in a run folder.

    Args:
        run: the run folder.
        job: job id and number of restarts; by default those of the job of this process.

    Raises:
        RunError: the file cannot be written.
    """
    event = Event(kind, time.time(), platform.node(), *(job or current_job()), step, reason, status)
    line = json.dumps(event._asdict()) + "\n"
    try:
        descriptor = os.open(run / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunError(f"{run / FILE}: cannot write the history: {error.strerror}") from error


def read_history(run: Path) -> list[Event]:
    """Return the events of a run folder in order. Invalid or truncated lines are skipped; the file may be missing."""
    try:
        lines = (run / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [event for event in map(_parse, lines) if event is not None]


def _parse(line: str) -> Event | None:
    try:
        content: dict[str, Any] = json.loads(line)
        event = Event(**content)
    except (ValueError, TypeError):
        return None
    return event if event.kind in get_args(Kind) else None


def events_of_start(events: Sequence[Event], job: str | None, restart: int) -> list[Event]:
    """Return the events of one start of a job: those between two requeues."""
    return [event for event in events if (event.job, event.restart) == (job, restart)]


def starts_without_progress(events: Sequence[Event], job: str | None, restart: int) -> int:
    """Return how often a job has been started since its run last completed a step, including the present start.

    Starts of which no process recorded anything count as well, because Slurm counts the restarts.
    """
    steps = [event for event in events if event.step is not None]
    # The step of a start is also progress if it is earlier: the newest checkpoint was damaged and is replaced.
    changes = [
        event
        for before, event in zip([None, *steps], steps, strict=False)
        if not before or event.step != before.step
    ]
    progress = changes[-1] if changes else None
    first = progress.restart if progress is not None and progress.job == job else 0
    return restart - first + 1
