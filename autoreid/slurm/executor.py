"""submitit's executor, told what it leaves out: requeueing, srun's CPUs, and an end of all tasks when one dies."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from autoreid.errors import RunError
from autoreid.slurm.request import JobRequest
from autoreid.slurm.tasks import PackageCommand


class JobExecutor(submitit.SlurmExecutor):
    """Renders and submits the jobs of one request.

    Args:
        folder: on a file system that all nodes share; gets the script, and a log for each task.
        name: of the job.
        runs: run folders of the array's elements, or the one of a single job; none if it is not to come back.
    """

    def __init__(self, request: JobRequest, folder: Path, name: str, runs: Sequence[Path] = ()) -> None:
        python = request.python or shlex.quote(sys.executable)
        super().__init__(folder=folder, python=python)
        self.update_parameters(
            **parameters(request, name), teardown=come_back(python, runs, request.max_restarts)
        )

    @classmethod
    def affinity(cls) -> int:
        """Rendering needs no Slurm; submitting says itself when there is none."""
        return 2

    def script(self, elements: int = 1) -> str:
        """The text that sbatch gets, for a job or for an array of some elements."""
        array = {"map_count": elements} if elements > 1 else {}
        kept, self.parameters = self.parameters, self.parameters | array
        try:
            return self._make_submission_file_text(self._submitit_command_str, "")
        finally:
            self.parameters = kept

    def launch(self, commands: Sequence[PackageCommand]) -> list[str]:
        """Submits one job, or an array of several; returns the ids of all elements.

        Raises:
            RunError: sbatch refused; says why.
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
            raise RunError(f"sbatch refused the job: {reason}") from error


def parameters(request: JobRequest, name: str) -> dict[str, Any]:
    """A request as submitit's parameters."""
    plain = (
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
    given = {key: getattr(request, key) for key in plain if getattr(request, key) is not None}
    if request.gpus and not request.gres:
        given["gpus_per_node"] = request.gpus
    if request.array_limit:
        given["array_parallelism"] = request.array_limit
    if request.setup:
        given["setup"] = list(request.setup)
    return given | {
        "job_name": name,
        # In whole minutes, as submitit counts; without one the partition's limit holds.
        "time": None if request.seconds is None else -(-request.seconds // 60),
        "ntasks_per_node": request.tasks_per_node,
        "signal_delay_s": request.lead_seconds,
        "stderr_to_stdout": True,
        # Since Slurm 22.05 srun does not take over the batch script's --cpus-per-task.
        "srun_args": [f"--cpus-per-task={request.cpus_per_task}", "--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **request.slurm},
        "wckey": None,
    }


def come_back(python: str, runs: Sequence[Path], max_restarts: int) -> list[str]:
    """Shell lines after the tasks: whether the job has more to do, and what its exit status is."""
    if not runs:
        return ["exit $?"]
    folders = " ".join(shlex.quote(str(run)) for run in runs)
    return [
        "status=$?",
        f"runs=({folders})",
        f'{python} -m autoreid.slurm.resume --run "${{runs[${{SLURM_ARRAY_TASK_ID:-0}}]}}" --status "$status" '
        f"--max-restarts {max_restarts}",
    ]
