"""python -m autoreid.slurm.resume: the last line of a job script; requeues the job if its run has more to do.

It comes after every task has left, so none of them is killed by the requeue.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.errors import AutoreidError
from autoreid.reporting.history import (
    Event,
    current_job,
    of_incarnation,
    read_history,
    record,
    starts_without_progress,
)

#: Starts from the same step, one after another, after which a run is given up.
MAX_STARTS_WITHOUT_PROGRESS = 3
#: Exit statuses of a wrong config or data set, and of ranks that disagree: the next attempt would do no better.
_HOPELESS = (2, 3)


def reason_to_requeue(events: Sequence[Event], job: str | None, restart: int, status: int) -> str | None:
    """Why a job should come back, judged by its run's history and its tasks' exit status; None if it should not.

    A run that was told to stop comes back; so does one whose tasks ended without a word: killed, or cut off from
    a peer. What failed with a message of its own would fail again.
    """
    end = _end(events, job, restart)
    if end is not None and end.kind == "stopped":
        # SIGTERM is the start of a requeue by Slurm, or of a cancellation: not ours to decide.
        return f"stopped by {end.reason}" if end.reason == "SIGUSR2" else None
    if end is not None or status in (0, *_HOPELESS):
        return None
    return f"a task was lost (exit status {status})"


def exit_status(events: Sequence[Event], job: str | None, restart: int, status: int) -> int:
    """What a job that does not come back ends with: its tasks' status, but 0 once its run has finished.

    The signal ahead of the time limit may reach tasks that have finished and are leaving; it kills them.
    """
    end = _end(events, job, restart)
    return 0 if end is not None and end.kind == "finished" else status


def _end(events: Sequence[Event], job: str | None, restart: int) -> Event | None:
    """How the job's present incarnation ended by its own account; None if it did not say."""
    mine = of_incarnation(events, job, restart)
    return mine[-1] if mine and mine[-1].kind in ("stopped", "finished", "failed") else None


def why_not(events: Sequence[Event], restart: int, max_restarts: int) -> str | None:
    """Why a job that would come back must not; None if it may."""
    if restart >= max_restarts:
        return f"it was restarted {restart} times, and --max-restarts is {max_restarts}"
    starts = starts_without_progress(events)
    if starts >= MAX_STARTS_WITHOUT_PROGRESS and not _got_further(events):
        step = next(event.step for event in reversed(events) if event.kind == "started")
        return f"the last {starts} starts did not get beyond step {step}"
    return None


def _got_further(events: Sequence[Event]) -> bool:
    """Whether the newest incarnation saved steps beyond its start."""
    last = events[-1]
    start = next((event for event in reversed(events) if event.kind == "started"), None)
    return last.kind == "stopped" and start is not None and (last.step or 0) > (start.step or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns what the job's exit status shall be."""
    parser = argparse.ArgumentParser(prog="python -m autoreid.slurm.resume", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="the run's folder")
    parser.add_argument("--status", type=int, required=True, help="exit status of srun")
    parser.add_argument(
        "--max-restarts", type=int, default=100, metavar="N", help="how often the job may come back"
    )
    options = parser.parse_args(arguments)
    job, restart = current_job()
    status: int = options.status
    events = read_history(options.run)
    reason = reason_to_requeue(events, job, restart, status)
    if reason is None:
        return exit_status(events, job, restart, status)
    refusal = why_not(events, restart, options.max_restarts)
    if refusal is None and job is not None:
        print(f"autoreid: requeueing job {job}: {reason}", file=sys.stderr)
        try:
            record(options.run, "requeued", reason=reason)
            subprocess.run(["scontrol", "requeue", _whole_id(job)], check=True, timeout=60)
        except (AutoreidError, OSError, subprocess.SubprocessError) as error:
            refusal = f"scontrol requeue failed: {error}"
        else:
            return status
    print(f"autoreid: not requeueing: {refusal or 'no SLURM_JOB_ID'} ({reason})", file=sys.stderr)
    return status or 1


def _whole_id(job: str) -> str:
    """An array's element by the name that says so; a plain job by its number."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else job


if __name__ == "__main__":
    sys.exit(main())
