"""Submit several jobs or job arrays, each of which waits for the previous one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoreid.reporting.history import record
from autoreid.slurm.executor import JobExecutor, check_log_folder
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.queue import check_array_size, require_slurm
from autoreid.slurm.submit import announce, is_dry_run, run_locally, test_only
from autoreid.slurm.tasks import PackageCommand


@dataclass(frozen=True)
class Stage:
    """One job, or job array, of several that depend on each other.

    Attributes:
        name: name of the stage, for example "search".
        commands: the command of each array task.
        folder: folder of submitit's files and logs.
        runs: run folder of each array task; empty if the stage has none.
        waits_for: type of the dependency on the previous stage, "afterany" or "afterok"; None for the first stage.
        of: what the name of the job begins with; by default the name of the folder that `folder` is in.
    """

    name: str
    commands: Sequence[PackageCommand]
    job_options: JobOptions
    folder: Path
    runs: Sequence[Path] = ()
    waits_for: str | None = None
    of: str | None = None

    def executor(self, before: str | None) -> JobExecutor:
        """Return the executor of the stage, whose job depends on the job `before`."""
        job_options = self.job_options
        if before is not None:
            # Without this option a job whose dependency failed stays in the queue for ever.
            slurm = {**job_options.slurm, "kill-on-invalid-dep": "yes"}
            wait = f"{self.waits_for}:{before}"
            job_options = job_options.model_copy(update={"dependency": wait, "slurm": slurm})
        name = f"{self.of or self.folder.parent.name}-{self.name}"
        return JobExecutor(job_options, self.folder, name, self.runs)


def submit_stages(
    stages: Sequence[Stage], options: argparse.Namespace, freeze: Callable[[], None], shown_by: str
) -> None:
    """Submit all stages; or handle --dry-run, --test-only and --local.

    Args:
        freeze: writes the copies of the recipes that the jobs read; called right before anything is submitted.
        shown_by: command that shows the progress of the jobs.
    """
    if not options.local:
        for stage in stages:
            check_log_folder(stage.folder)
        check_array_size(max(len(stage.commands) for stage in stages))
    if is_dry_run(options):
        for stage in stages:
            print(f"# ---- {stage.name} ----", flush=True)
            script = stage.executor(None).script(len(stage.commands))
            print(script) if options.dry_run else test_only(script)
        return
    if not options.local:
        require_slurm()
    freeze()
    if options.local:
        for stage in stages:
            for command in stage.commands:
                run_locally(command, stage.job_options.ranks)
        return
    _launch(stages)
    print(f"show their progress with: {shown_by}", file=sys.stderr)


def _launch(stages: Sequence[Stage]) -> None:
    before: str | None = None
    for stage in stages:
        executor = stage.executor(before)
        ids = executor.launch(stage.commands)
        for job, run in zip(ids, stage.runs, strict=False):
            run.mkdir(parents=True, exist_ok=True)
            record(run, "submitted", job=(job, 0))
        for index, job in enumerate(ids):
            folder = stage.runs[index] if stage.runs else stage.folder.parent
            announce(job, folder, executor.folder, stage.job_options, stage.name)
        before = ids[0].partition("_")[0]
