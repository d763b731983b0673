"""submitit's Slurm executor, with requeueing, `srun --cpus-per-task` and `srun --kill-on-bad-exit` added."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from autoreid.errors import ConfigError, RunError
from autoreid.slurm.environment import sbatch_command
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.notation import gres_gpus
from autoreid.slurm.tasks import PackageCommand


class JobExecutor(submitit.SlurmExecutor):
    """Renders batch scripts and submits jobs that share the same options.

    Args:
        job_options: options of sbatch and of the requeueing.
        folder: folder for the batch script and a log for each Slurm task, on a file system that all nodes share.
        name: name of the job.
        runs: run folder of each array task, or of the single job; empty if the job must not be requeued.
    """

    def __init__(self, job_options: JobOptions, folder: Path, name: str, runs: Sequence[Path] = ()) -> None:
        python = job_options.python or shlex.quote(sys.executable)
        super().__init__(folder=folder, python=python)
        self.update_parameters(
            **parameters(job_options, name),
            teardown=requeue_commands(python, runs, job_options.max_restarts),
        )

    @classmethod
    def affinity(cls) -> int:
        """Report the executor as available: rendering needs no Slurm, and submitting without it raises an error."""
        return 2

    def script(self, array_size: int = 1) -> str:
        """Return the batch script of a job, or of a job array with `array_size` array tasks."""
        array = {"map_count": array_size} if array_size > 1 else {}
        original, self.parameters = self.parameters, self.parameters | array
        try:
            return self._make_submission_file_text(self._submitit_command_str, "")
        finally:
            self.parameters = original

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        """Return submitit's command, in an environment in which no other allocation is left."""
        return sbatch_command(os.environ, str(submission_file_path))

    def launch(self, commands: Sequence[PackageCommand]) -> list[str]:
        """Submit one job, or a job array for several commands, and return the id of each job or array task.

        Raises:
            RunError: sbatch rejected the job.
        """
        try:
            if len(commands) == 1:
                return [self.submit(commands[0]).job_id]
            with self.batch():
                jobs = [self.submit(command) for command in commands]
            return [job.job_id for job in jobs]
        except (FailedJobError, FailedSubmissionError) as error:
            lines = [line for line in str(error).splitlines() if "sbatch: error" in line]
            reason = "; ".join(line.partition("sbatch: error: ")[2] for line in lines) or str(error).strip()
            raise RunError(f"sbatch rejected the job: {reason}") from error


def check_log_folder(folder: Path) -> None:
    r"""Raise ConfigError if Slurm would write the logs elsewhere, because it replaces \, %% or %j in their paths."""
    found = re.search(r"\\|%%|%\d*[AabJjNnstux]", str(folder.absolute()))
    if found is not None:
        raise ConfigError(
            f"{folder}: Slurm cannot write its logs here, because it replaces {found[0]} in their paths; choose "
            "another folder (output_dir, or --output)"
        )


def parameters(job_options: JobOptions, name: str) -> dict[str, Any]:
    """Return the parameters of submitit's executor for job options."""
    unchanged = (
        "nodes",
        "cpus_per_task",
        "mem",
        "partition",
        "account",
        "qos",
        "constraint",
        "nodelist",
        "exclude",
        "gres",
        "dependency",
        "comment",
        "mail_user",
        "mail_type",
    )
    given = {key: getattr(job_options, key) for key in unchanged if getattr(job_options, key) is not None}
    if job_options.gpus and gres_gpus(job_options.gres) is None:
        given["gpus_per_node"] = job_options.gpus
    if job_options.array_limit:
        given["array_parallelism"] = job_options.array_limit
    if job_options.setup:
        given["setup"] = list(job_options.setup)
    return given | {
        "job_name": name,
        # submitit counts in whole minutes. Without a time limit the partition's default applies.
        "time": None if job_options.seconds is None else -(-job_options.seconds // 60),
        "ntasks_per_node": job_options.tasks_per_node,
        "signal_delay_s": job_options.lead_seconds,
        "stderr_to_stdout": True,
        # Since Slurm 22.05 srun does not inherit --cpus-per-task from the batch script.
        "srun_args": [f"--cpus-per-task={job_options.cpus_per_task}", "--kill-on-bad-exit=1"],
        "additional_parameters": {
            "requeue": True,
            **{key: text or True for key, text in job_options.slurm.items()},
        },
        "wckey": None,
    }


def requeue_commands(python: str, runs: Sequence[Path], max_restarts: int) -> list[str]:
    """Return the last shell lines of a batch script: they requeue the job if needed, and set its exit status."""
    if not runs:
        return ["exit $?"]
    folders = " ".join(shlex.quote(str(run)) for run in runs)
    return [
        "status=$?",
        f"runs=({folders})",
        f'{python} -m autoreid.slurm.resume --run "${{runs[${{SLURM_ARRAY_TASK_ID:-0}}]}}" --status "$status" '
        f"--max-restarts {max_restarts}",
    ]
