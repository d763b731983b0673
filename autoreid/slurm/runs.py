"""Find runs by task name, run folder or job id, with their state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreid.errors import ConfigError
from autoreid.reporting.history import FILE, Event, read_history
from autoreid.reporting.run_folder import SWEEP_FILE, run_name
from autoreid.slurm.queue import ACTIVE, JobState, job_states


@dataclass(frozen=True)
class Run:
    """A run folder and the state of its run.

    Attributes:
        events: the history of the run.
        job: the last job that was submitted for the run, or None.
        slurm: the state of that job; None if Slurm no longer knows it, or without Slurm.
        progress: the content of progress.json.
    """

    folder: Path
    events: Sequence[Event]
    job: str | None
    slurm: JobState | None
    progress: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run's folder, with the sweep's in front if it is part of one."""
        return run_name(self.folder)

    @property
    def is_active(self) -> bool:
        """Whether the run's job is in Slurm's queue."""
        return self.slurm is not None and self.slurm.state in ACTIVE

    @property
    def state(self) -> str:
        """The state of the job while it is in the queue, and the last recorded event of the run afterwards."""
        if self.is_active and self.slurm is not None:
            return self.slurm.state
        last = self.events[-1].kind if self.events else "submitted"
        if last in ("finished", "failed", "crashed", "stopped"):
            return last
        if self.slurm is not None:
            return self.slurm.state
        # The run recorded its start but not its end. Without a job, it may still be running.
        return {"started": "started" if self.job is None else "lost"}.get(last, last)

    @property
    def restarts(self) -> int:
        """How often the run was restarted."""
        return max(0, sum(event.kind == "started" for event in self.events) - 1)

    @property
    def last_reason(self) -> str:
        """Why the job is pending, or why the run last stopped, was requeued or failed."""
        if self.slurm is not None and self.slurm.state == "PENDING":
            return self.slurm.reason
        return next((event.reason for event in reversed(self.events) if event.reason), "")


def find_runs(names: Sequence[str], output_dir: Path) -> list[Run]:
    """Return the runs with the given names, in order; without names all runs, ordered by their last change.

    Args:
        names: task names, run folders, folders of studies or sweeps, or job ids. A study or sweep means all its runs.
        output_dir: folder of the run folders.

    Raises:
        ConfigError: there is no run with one of the names.
    """
    folders = {path.parent for path in output_dir.glob(f"*/{FILE}")}
    folders |= {path for sweep in output_dir.glob(f"*/{SWEEP_FILE}") for path in _members(sweep.parent)}
    ordered = sorted(folders, key=_last_change)
    if names:
        return read_runs([folder for name in names for folder in _folders_of(name, output_dir, ordered)])
    return read_runs(ordered)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs of run folders, which need not exist; Slurm is asked once for all of them."""
    histories = {folder: read_history(folder) for folder in folders}
    jobs = {folder: _newest_job(events) for folder, events in histories.items()}
    states = job_states({job for job in jobs.values() if job})
    return [
        Run(folder, events, jobs[folder], states.get(jobs[folder] or ""), _read_progress(folder))
        for folder, events in histories.items()
    ]


def _members(folder: Path) -> list[Path]:
    """Return the run folders of a study (the searches, then the trainings) or of a sweep; none of another folder."""
    inner = "*" if (folder / SWEEP_FILE).exists() else "runs/*"
    folders = [path.parent for path in folder.glob(f"{inner}/{FILE}")]
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))


def _folders_of(name: str, output_dir: Path, known: Sequence[Path]) -> list[Path]:
    """Return the run folders that a name means."""
    for folder in (output_dir / name, Path(name)):
        if (folder / FILE).exists():
            return [folder]
        if _members(folder):
            return _members(folder)
    for folder in known:
        if any(event.kind == "submitted" and event.job == name for event in read_history(folder)):
            return [folder]
    raise ConfigError(
        f"{name}: no run with this task name or job id in {output_dir}; set --output-dir if it is elsewhere"
    )


def _newest_job(events: Sequence[Event]) -> str | None:
    return next((event.job for event in reversed(events) if event.kind == "submitted"), None)


def _last_change(folder: Path) -> float:
    return (folder / FILE).stat().st_mtime


def _read_progress(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "progress.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
