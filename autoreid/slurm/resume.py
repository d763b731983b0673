"""python -m autoreid.slurm.resume: the last command of a batch script; requeues the job if its run can continue.

It runs after all Slurm tasks have exited, so that the requeue kills none of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.errors import RunError
from autoreid.reporting.history import (
    Event,
    current_job,
    events_of_start,
    read_history,
    record,
    starts_without_progress,
)

#: A job is no longer requeued after this many consecutive starts that completed no step, whatever they got to.
MAX_STARTS_WITHOUT_PROGRESS = 3
#: Signals that batch scripts ask for before the time limit.
REQUEUE_SIGNALS = ("SIGUSR1", "SIGUSR2")
#: Exit statuses of errors that a restart would repeat: a wrong config or data set, and ranks that disagree.
_PERMANENT_FAILURES = (2, 3)


def reason_to_requeue(events: Sequence[Event], job: str | None, restart: int, status: int) -> str | None:
    """Return why a job should be requeued, or None if it should not.

    A run that stopped at the time limit is requeued. So is a run whose processes crashed, or did not record how they
    ended because they were killed. A run that recorded an error which would happen again is not.

    Args:
        events: the history of the run.
        restart: how often the job was restarted.
        status: exit status of srun.
    """
    end = _recorded_end(events, job, restart)
    if end is not None and end.kind == "stopped":
        # After SIGTERM, Slurm itself requeues the job (preemption), or the user has cancelled it.
        return f"stopped by {end.reason}" if end.reason in REQUEUE_SIGNALS else None
    if end is not None and end.kind != "crashed":
        return None
    if status in (0, *_PERMANENT_FAILURES):
        return None
    lost = f"a Slurm task was lost (exit status {status})"
    return f"{lost}: {end.reason}" if end is not None else lost


def exit_status(events: Sequence[Event], job: str | None, restart: int, status: int) -> int:
    """Return the exit status of a job that is not requeued: what its run recorded, or else that of srun.

    srun's status is not enough: the stop signal can kill processes that have finished and are exiting, and srun kills
    the other ranks of one that has failed.
    """
    end = _recorded_end(events, job, restart)
    if end is None:
        return status
    return 0 if end.kind == "finished" else end.status or status


def _recorded_end(events: Sequence[Event], job: str | None, restart: int) -> Event | None:
    """Return how the run ended in this start of the job; None if its processes did not record it.

    An error of one rank is the reason why the others crash, in whatever order they record it.
    """
    current = events_of_start(events, job, restart)
    if any(event.kind == "requeued" for event in current):
        return None
    for kinds in (("failed",), ("stopped", "finished"), ("crashed",)):
        for event in current:
            if event.kind in kinds:
                return event
    return None


def reason_not_to_requeue(
    events: Sequence[Event], job: str | None, restart: int, max_restarts: int
) -> str | None:
    """Return why a job that should be requeued must not be, or None if it may."""
    if restart >= max_restarts:
        return f"restarted {restart} times, and --max-restarts is {max_restarts}"
    starts = starts_without_progress(events, job, restart)
    if starts >= MAX_STARTS_WITHOUT_PROGRESS:
        step = next((event.step for event in reversed(events) if event.step is not None), 0)
        return f"no progress beyond step {step} in the last {starts} starts"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status for the job."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.slurm.resume",
        description="Requeue the job at the end of its batch script, if its run can continue.",
    )
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="run folder")
    parser.add_argument("--status", type=int, required=True, metavar="N", help="exit status of srun")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=100,
        metavar="N",
        help="maximum number of times that the job is requeued (default: 100)",
    )
    options = parser.parse_args(arguments)
    job, restart = current_job()
    status: int = options.status
    events = read_history(options.run)
    reason = reason_to_requeue(events, job, restart, status)
    if reason is None:
        return exit_status(events, job, restart, status)
    refusal = reason_not_to_requeue(events, job, restart, options.max_restarts)
    if refusal is None and job is not None:
        print(f"autoreid: requeueing job {job}: {reason}", file=sys.stderr)
        try:
            _record(options.run, reason)
            subprocess.run(["scontrol", "requeue", _requeue_id(job)], check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            refusal = f"scontrol requeue failed: {error}"
        else:
            return status
    print(f"autoreid: job not requeued: {refusal or 'SLURM_JOB_ID is not set'} ({reason})", file=sys.stderr)
    return status or 1


def _record(run: Path, reason: str) -> None:
    """Record the requeue. Slurm counts the restarts, so that a history that cannot be written does not matter."""
    try:
        run.mkdir(parents=True, exist_ok=True)  # srun may have failed before the run had a folder
        record(run, "requeued", reason=reason)
    except (OSError, RunError) as error:
        print(f"autoreid: {error}", file=sys.stderr)


def _requeue_id(job: str) -> str:
    """Return the id of this job for scontrol: ARRAYID_INDEX for an array task, else the job id."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else job


if __name__ == "__main__":
    sys.exit(main())
