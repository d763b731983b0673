"""Runs that people name on the command line, with what their folders and Slurm say of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoreid.errors import ConfigError
from autoreid.reporting.history import FILE, Event, read_history
from autoreid.slurm.queue import ACTIVE, JobState, job_states


@dataclass(frozen=True)
class Run:
    """A run's folder and what is known of it.

    Attributes:
        job: the newest job that was submitted for it; None if none was.
        slurm: what Slurm says of that job; None if it was forgotten, or there is no Slurm.
        progress: what progress.json holds.
    """

    folder: Path
    events: Sequence[Event]
    job: str | None
    slurm: JobState | None
    progress: dict[str, Any]

    @property
    def is_active(self) -> bool:
        """Whether its job is in Slurm's queue."""
        return self.slurm is not None and self.slurm.state in ACTIVE

    @property
    def state(self) -> str:
        """Slurm's word while the job is in the queue, then what the run itself said last."""
        if self.is_active and self.slurm is not None:
            return self.slurm.state
        last = self.events[-1].kind if self.events else "submitted"
        if last in ("finished", "failed", "stopped"):
            return last
        if self.slurm is not None:
            return self.slurm.state
        # It said that it started, and never how it ended; without a job nobody knows whether it still runs.
        return {"started": "started" if self.job is None else "lost"}.get(last, last)

    @property
    def restarts(self) -> int:
        """How often it started again."""
        return max(0, sum(event.kind == "started" for event in self.events) - 1)

    @property
    def last_reason(self) -> str:
        """Why it was last stopped, requeued or failed, or what it waits for."""
        if self.slurm is not None and self.slurm.state == "PENDING":
            return self.slurm.reason
        return next((event.reason for event in reversed(self.events) if event.reason), "")


def find_runs(names: Sequence[str], output_dir: Path) -> list[Run]:
    """The runs of some names, in order; for no names all below a folder, the newest last.

    Args:
        names: task names, run folders or job ids.
        output_dir: folder of run folders.

    Raises:
        ConfigError: a name is no run's.
    """
    folders = sorted((path.parent for path in output_dir.glob(f"*/{FILE}")), key=_last_change)
    histories = {folder: read_history(folder) for folder in folders}
    if names:
        chosen = [_folder_of(name, output_dir, histories) for name in names]
        histories = {folder: read_history(folder) for folder in chosen}
    jobs = {folder: _newest_job(events) for folder, events in histories.items()}
    states = job_states({job for job in jobs.values() if job})
    return [
        Run(folder, events, jobs[folder], states.get(jobs[folder] or ""), _read_progress(folder))
        for folder, events in histories.items()
    ]


def _folder_of(name: str, output_dir: Path, histories: dict[Path, list[Event]]) -> Path:
    for folder in (output_dir / name, Path(name)):
        if (folder / FILE).exists():
            return folder
    for folder, events in histories.items():
        if any(event.kind == "submitted" and event.job == name for event in events):
            return folder
    raise ConfigError(
        f"{name}: no run of this task name or job id in {output_dir}; --output-dir says where to look"
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
