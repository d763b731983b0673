"""The runs of jobs: their configs, folders and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoreid.config import MAY_DIFFER, Config
from autoreid.errors import ConfigError
from autoreid.files import write_atomically
from autoreid.recipes import load_config
from autoreid.reporting.history import read_history
from autoreid.reporting.run_folder import RunFolder
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.queue import ACTIVE, job_states
from autoreid.slurm.tasks import PackageCommand
from autoreid.train import with_genotype

Task = Literal["search", "train"]


@dataclass(frozen=True)
class PlannedRun:
    """A run to submit: its resolved config and its folder."""

    config: Config
    folder: Path

    @property
    def frozen_config(self) -> Path:
        """Path of the copy of the config that the job reads, so that later edits of the recipe do not affect it."""
        return self.folder / "slurm" / "config.yaml"

    def command(self) -> PackageCommand:
        """Return the command that the Slurm tasks of the job run."""
        return PackageCommand("train", ("--config", str(self.frozen_config)), Path.cwd())

    def freeze(self) -> None:
        """Write the copy of the config that the job reads."""
        self.frozen_config.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.frozen_config, self.config.to_yaml().encode())


def plan_runs(
    recipe: Path, overrides: Sequence[Sequence[str]], task: Task, job_options: JobOptions
) -> list[PlannedRun]:
    """Plan runs, and check what needs no PyTorch: config, run folder and queue. `commands.train.check` does the rest.

    Args:
        overrides: those of each run.

    Raises:
        ConfigError: a config is wrong, a folder belongs to another one, or a run is already in the queue.
    """
    runs = [resolve_run(recipe, each, task, job_options) for each in overrides]
    check_not_queued([run.folder for run in runs])
    return runs


def resolve_run(recipe: Path, overrides: Sequence[str], task: Task, job_options: JobOptions) -> PlannedRun:
    """Resolve the config of a run, and check that its folder has no other run.

    Raises:
        ConfigError: the config is wrong, or the folder belongs to a run of another config.
    """
    config = with_genotype(load_config(recipe, overrides))
    if config.task != task:
        raise ConfigError(
            f"{recipe}: task = {config.task}, expected {task}; submit it with jobs/submit_{config.task}.py"
        )
    if job_options.gpus and config.distributed.device == "auto":
        # A job with GPUs must fail rather than compute on CPUs because a driver is missing.
        distributed = config.distributed.model_copy(update={"device": "cuda"})
        config = config.model_copy(update={"distributed": distributed})
    folder = (config.output_dir / config.task_name).absolute()
    RunFolder(folder).check_claim(config, MAY_DIFFER)
    return PlannedRun(config, folder)


def check_not_queued(folders: Sequence[Path]) -> None:
    """Raise ConfigError if a job that was submitted for one of the run folders is still in Slurm's queue."""
    folder_of = {
        event.job: folder
        for folder in folders
        for event in read_history(folder)
        if event.kind == "submitted" and event.job
    }
    for job, state in job_states(folder_of.keys()).items():
        if state.state in ACTIVE:
            raise ConfigError(
                f"{folder_of[job]}: job {job} of this run is still {state.state}; set another task_name, or cancel "
                f"the job: python jobs/cancel.py {folder_of[job]}"
            )
