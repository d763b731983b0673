"""Ask Slurm for its limits and for the states of jobs.

States are those of squeue first, and then those of sacct or scontrol for jobs that have left the queue.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from typing import NamedTuple

from autoreid.errors import ConfigError

#: States of jobs that have not ended.
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
    """The state of a job in Slurm.

    Attributes:
        reason: why the job is pending, or its nodes.
        time_left: time until the time limit, as squeue prints it.
    """

    state: str
    reason: str = ""
    time_left: str = ""


def require_slurm() -> None:
    """Raise ConfigError if sbatch is not installed on this machine."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "sbatch: command not found; submit from a login node, or run on this machine with --local "
            "(--dry-run prints the batch script)"
        )


def check_array_size(tasks: int) -> None:
    """Raise ConfigError if a job array has more tasks than the cluster allows, as far as Slurm says how many."""
    shown = _run("scontrol", "show", "config") if tasks > 1 else None
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown or "", re.MULTILINE)
    most = tasks if limit is None else max(int(limit[1]), 1)  # 0 means that there are no arrays
    if tasks > most:
        raise ConfigError(
            f"a job array of {tasks} tasks is too large for this cluster (MaxArraySize in scontrol show config): "
            f"submit at most {most} runs at a time; for the trainings of a study, set --trainings-at-once {most}"
        )


def job_states(jobs: Collection[str]) -> dict[str, JobState]:
    """Return the states of jobs by job id, with one call of squeue and at most one of sacct.

    Clusters without accounting have no sacct: there, scontrol is called once for each job that has left the queue.

    Args:
        jobs: job ids; ARRAYID_INDEX for the tasks of a job array.

    Returns:
        The states by job id, without the jobs that Slurm no longer knows.
    """
    if not jobs or shutil.which("squeue") is None:
        return {}
    found = _from_squeue(sorted(jobs))
    gone = sorted(set(jobs) - found.keys())
    if gone:
        found |= _from_sacct(gone) or _from_scontrol(gone)
    return found


def _run(*command: str) -> str | None:
    """Return the standard output of a command, or None if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _from_squeue(jobs: Sequence[str]) -> dict[str, JobState]:
    # All of the user's jobs instead of --jobs: squeue fails if one of the given jobs has left the queue.
    shown = _run("squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T|%R|%L")
    rows = (line.split("|", 3) for line in (shown or "").splitlines())
    found = {job: JobState(state, reason, left) for job, state, reason, left in rows}
    return {job: found[job] for job in jobs if job in found}


def _from_sacct(jobs: Sequence[str]) -> dict[str, JobState]:
    columns = "--format=JobID,State,NodeList"
    shown = _run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(jobs)}", columns)
    rows = (line.split("|", 2) for line in (shown or "").splitlines())
    # "CANCELLED by 1000"
    return {job: JobState(state.split()[0], nodes) for job, state, nodes in rows if job in jobs and state}


def _from_scontrol(jobs: Sequence[str]) -> dict[str, JobState]:
    found = {}
    for job in jobs:
        shown = _run("scontrol", "--oneliner", "show", "job", job)
        state = re.search(r"\bJobState=(\w+)", shown or "")
        if state:
            found[job] = JobState(state[1])
    return found
