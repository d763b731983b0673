"""What Slurm says of jobs: the queue first, then accounting or the controller's memory for those that left it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from typing import NamedTuple

from autoreid.errors import ConfigError

#: States in which a job may still do something.
ACTIVE = frozenset(
    (
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "SUSPENDED",
        "REQUEUED",
        "REQUEUE_HOLD",
        "RESIZING",
        "STOPPED",
    )
)
_TIMEOUT_SECONDS = 60


class JobState(NamedTuple):
    """A job as Slurm sees it.

    Attributes:
        reason: why it waits, or its nodes.
        time_left: until its limit, as squeue writes it.
    """

    state: str
    reason: str = ""
    time_left: str = ""


def require_slurm() -> None:
    """Raises ConfigError where jobs cannot be submitted."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "sbatch: no such program; submit on a login node, or run here with --local (--dry-run shows the script)"
        )


def job_states(jobs: Collection[str]) -> dict[str, JobState]:
    """The states of jobs, in at most one call of squeue and one of sacct; without accounting, scontrol is asked.

    Args:
        jobs: ids, of an array's elements as ARRAY_INDEX.

    Returns:
        By id; jobs that Slurm has forgotten are absent.
    """
    if not jobs or shutil.which("squeue") is None:
        return {}
    found = _in_queue(sorted(jobs))
    gone = sorted(set(jobs) - found.keys())
    if gone:
        found |= _in_accounts(gone) or _in_memory(gone)
    return found


def _run(*command: str) -> str | None:
    """A command's output; None if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _in_queue(jobs: Sequence[str]) -> dict[str, JobState]:
    # All of the user's jobs, not --jobs: asked for one that has left, squeue fails.
    shown = _run("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T|%R|%L")
    rows = (line.split("|", 3) for line in (shown or "").splitlines())
    found = {job: JobState(state, reason, left) for job, state, reason, left in rows}
    return {job: found[job] for job in jobs if job in found}


def _in_accounts(jobs: Sequence[str]) -> dict[str, JobState]:
    columns = "--format=JobID,State,NodeList"
    shown = _run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}", columns)
    rows = (line.split("|", 2) for line in (shown or "").splitlines())
    # "CANCELLED by 1000"
    return {job: JobState(state.split()[0], nodes) for job, state, nodes in rows if job in jobs and state}


def _in_memory(jobs: Sequence[str]) -> dict[str, JobState]:
    found = {}
    for job in jobs:
        shown = _run("scontrol", "--oneliner", "show", "job", job)
        state = re.search(r"\bJobState=(\w+)", shown or "")
        if state:
            found[job] = JobState(state[1])
    return found
