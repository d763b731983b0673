"""The history of a run in history.jsonl: one event per line.

A run can span many processes and jobs. Each of them records its start and its end; a start without an end means that
the process was killed. Several processes may append lines, so each line is short and appended in a single write.
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

Kind = Literal["submitted", "started", "stopped", "requeued", "finished", "failed"]

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
    """

    kind: Kind
    seconds: float
    host: str
    job: str | None = None
    restart: int = 0
    step: int | None = None
    reason: str = ""


def current_job() -> tuple[str | None, int]:
    """Return the id of the Slurm job of this process, or None, and how often the job was restarted."""
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def record(
    run: Path,
    kind: Kind,
    step: int | None = None,
    reason: str = "",
    job: tuple[str | None, int] | None = None,
) -> None:
    """Append an event to the history in a run folder.

    Args:
        run: the run folder.
        job: job id and number of restarts; by default those of the job of this process.

    Raises:
        RunError: the file cannot be written.
    """
    event = Event(kind, time.time(), platform.node(), *(job or current_job()), step, reason)
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


def starts_without_progress(events: Sequence[Event]) -> int:
    """Return the number of consecutive starts, up to the last one, that began at the same step."""
    steps = [event.step for event in events if event.kind == "started"]
    count = 0
    for step in reversed(steps):
        if step != steps[-1]:
            break
        count += 1
    return count
