"""Check a search or training as its ranks would, and submit it: the command lines of jobs/submit_*.py."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autoreid.config import MAY_DIFFER, Config
from autoreid.errors import ConfigError
from autoreid.files import write_atomically
from autoreid.recipes import load_config
from autoreid.reporting.history import read_history, record
from autoreid.reporting.run_folder import RunFolder
from autoreid.slurm.environment import sbatch_command
from autoreid.slurm.executor import JobExecutor, check_log_folder
from autoreid.slurm.job_options import JobOptions, add_options, read_job_options
from autoreid.slurm.queue import ACTIVE, job_states, require_slurm
from autoreid.slurm.tasks import PackageCommand
from autoreid.train import with_genotype

_EXIT_STATUS = """\
Exit status: 0 submitted (with --local: done); 1 Slurm rejected the job; 2 error in the command line, config or data."""


def make_parser(program: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser with the options of jobs, --dry-run, --test-only and --local; commands add their own options."""
    parser = argparse.ArgumentParser(
        prog=f"python jobs/{program}.py",
        description=description,
        epilog=f"examples:\n{examples}\n{_EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--dry-run", action="store_true", help="print the batch script; submit and write nothing"
    )
    modes.add_argument(
        "--test-only", action="store_true", help="validate the batch script with sbatch --test-only"
    )
    modes.add_argument(
        "--local", action="store_true", help="run now, as processes on this machine, without Slurm"
    )
    add_options(parser)
    return parser


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


def plan_run(
    recipe: Path,
    overrides: Sequence[str],
    task: Literal["search", "train"],
    job_options: JobOptions,
) -> PlannedRun:
    """Plan a run, and check what needs no PyTorch: config, run folder and queue. `commands.train.check` does the rest.

    Raises:
        ConfigError: the config is wrong, the folder belongs to another one, or the run is already in the queue.
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
    check_not_queued(folder)
    return PlannedRun(config, folder)


def check_not_queued(folder: Path) -> None:
    """Raise ConfigError if a job that was submitted for a run folder is still in Slurm's queue."""
    jobs = {event.job for event in read_history(folder) if event.kind == "submitted" and event.job}
    for job, state in job_states(jobs).items():
        if state.state in ACTIVE:
            raise ConfigError(
                f"{folder}: job {job} of this run is still {state.state}; set another task_name, or cancel the job: "
                f"python jobs/cancel.py {folder}"
            )


def is_dry_run(options: argparse.Namespace) -> bool:
    """Return whether the command submits and writes nothing (--dry-run or --test-only)."""
    return bool(options.dry_run or options.test_only)


def submit_runs(runs: Sequence[PlannedRun], job_options: JobOptions, options: argparse.Namespace) -> None:
    """Submit one run as a job, or several as a job array; or handle --dry-run, --test-only and --local."""
    first = runs[0]
    name = first.config.task_name
    executor = JobExecutor(job_options, first.folder / "slurm", name, [run.folder for run in runs])
    if not options.local:
        check_log_folder(executor.folder)
    if is_dry_run(options):
        script = executor.script(len(runs))
        print(script) if options.dry_run else test_only(script)
        return
    if not options.local:
        require_slurm()
    for run in runs:
        run.freeze()
    if options.local:
        for run in runs:
            run_locally(run.command(), job_options.ranks)
        return
    ids = executor.launch([run.command() for run in runs])
    for run, job in zip(runs, ids, strict=True):
        record(run.folder, "submitted", job=(job, 0))
        announce(job, run.folder, executor.folder, job_options, run.config.task)


def announce(job: str, folder: Path, logs: Path, job_options: JobOptions, what: str) -> None:
    """Print the id, size, run folder and log of a submitted job."""
    nodes = "1 node" if job_options.nodes == 1 else f"{job_options.nodes} nodes"
    ranks = "1 rank" if job_options.ranks == 1 else f"{job_options.ranks} ranks"
    print(f"job {job}: {what}, {ranks} on {nodes}")
    print(f"  run folder: {folder}")
    print(f"  log:        {logs / f'{job}_0_log.out'}")


def test_only(script: str) -> None:
    """Validate a batch script with `sbatch --test-only`; raise ConfigError with sbatch's message if it is rejected."""
    if shutil.which("sbatch") is None:
        raise ConfigError("sbatch: command not found; use --test-only on a login node")
    command = sbatch_command(os.environ, "--test-only")
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60)
    message = done.stderr.strip().removeprefix("sbatch: ")
    if done.returncode:
        raise ConfigError(f"sbatch --test-only: {message}")
    print(message)


def run_locally(command: PackageCommand, ranks: int) -> None:
    """Run a command on this machine, with torchrun if there are several ranks.

    Raises:
        SystemExit: the command failed; it has printed its error.
    """
    line = [sys.executable, "-m"]
    if ranks > 1:
        line += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    line += [f"autoreid.{command.module}", *command.arguments]
    print(f"+ {shlex.join(line)}", file=sys.stderr)
    done = subprocess.run(line, cwd=command.folder)
    if done.returncode:
        raise SystemExit(done.returncode)


def submit_run(task: Literal["search", "train"], arguments: Sequence[str] | None) -> int:
    """Run jobs/submit_search.py or jobs/submit_train.py and return the exit status."""
    example = "darts_triplet" if task == "search" else "baseline_resnet50"
    noun = "search" if task == "search" else "training"
    parser = make_parser(
        f"submit_{task}",
        f"Submit a {noun} to Slurm. Config, data, network and run folder are checked first, on this machine.",
        f"  python jobs/submit_{task}.py --nodes 2 --gpus 8 --config configs/{example}.yaml\n"
        f"  python jobs/submit_{task}.py --gpus 4 --time 1-00:00:00 --partition gpu --config configs/{example}.yaml "
        "data.root=/data\n"
        f"  python jobs/submit_{task}.py --gpus 1 --seeds 0 1 2 --config configs/{example}.yaml --dry-run\n",
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="YAML recipe, as in configs/")
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="submit a job array with one run for each seed, named TASK_NAME-seedN",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="values that override the recipe's")
    options = parser.parse_intermixed_args(arguments)
    job_options = read_job_options(vars(options))
    runs = [
        plan_run(options.config, [*options.overrides, *seed], task, job_options)
        for seed in seed_overrides(options.config, options.overrides, options.seeds)
    ]
    from autoreid.commands.train import check

    for run in runs:
        check(run.config, job_options.ranks, may_generate=not is_dry_run(options))
    submit_runs(runs, job_options, options)
    return 0


def seed_overrides(recipe: Path, overrides: Sequence[str], seeds: Sequence[int] | None) -> list[list[str]]:
    """Return the overrides of seed and task name for the run of each seed; without seeds, none for a single run."""
    if not seeds:
        return [[]]
    name = load_config(recipe, overrides).task_name
    return [[f"seed={seed}", f"task_name={name}-seed{seed}"] for seed in dict.fromkeys(seeds)]
