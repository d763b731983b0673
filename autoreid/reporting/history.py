"""What happened to a run: submitted, started, stopped, requeued, finished or failed; a line of JSON an event.

A run may live through many processes and jobs. Each tells the file when it starts and how it ends; a start without
an end was killed. Any process may add a line, so lines are short and appended in one write.
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
    """One line.

    Attributes:
        seconds: since the epoch, by the writer's clock.
        job: Slurm's job id, as squeue shows it; None outside Slurm.
        restart: how often Slurm had requeued the job by then.
        step: steps that the run had done; None if the writer does not know.
        reason: why, in words.
    """

    kind: Kind
    seconds: float
    host: str
    job: str | None = None
    restart: int = 0
    step: int | None = None
    reason: str = ""


def current_job() -> tuple[str | None, int]:
    """The Slurm job that this process is part of, by its own number, and how often it was requeued."""
    return os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def record(
    run: Path,
    kind: Kind,
    step: int | None = None,
    reason: str = "",
    job: tuple[str | None, int] | None = None,
) -> None:
    """Adds an event to a run folder's history.

    Args:
        job: number and restarts; by default those of the job that this process is part of.

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
    """The events in order; lines that a crash cut off are skipped; without a file there are none."""
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
    """The events of a job between two requeues."""
    return [event for event in events if (event.job, event.restart) == (job, restart)]


def starts_without_progress(events: Sequence[Event]) -> int:
    """How many of the last starts, one after another, began at the same step as the newest."""
    steps = [event.step for event in events if event.kind == "started"]
    count = 0
    for step in reversed(steps):
        if step != steps[-1]:
            break
        count += 1
    return count
