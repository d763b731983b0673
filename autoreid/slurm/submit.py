"""Submit searches and trainings: jobs/submit_search.py, jobs/submit_train.py, and what all such commands share."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.config import expand
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.reporting.history import record
from autoreid.slurm.environment import sbatch_command
from autoreid.slurm.executor import JobExecutor, check_log_folder
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.planning import PlannedRun, Task, plan_runs
from autoreid.slurm.queue import check_array_size, require_slurm
from autoreid.slurm.read_options import add_options, read_job_options
from autoreid.slurm.sweep import add_sweep_option, plan_sweep
from autoreid.slurm.tasks import PackageCommand
from autoreid.sweeps.sweep import Sweep

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


def is_dry_run(options: argparse.Namespace) -> bool:
    """Return whether the command submits and writes nothing (--dry-run or --test-only)."""
    return bool(options.dry_run or options.test_only)


def submit_runs(
    runs: Sequence[PlannedRun],
    job_options: JobOptions,
    options: argparse.Namespace,
    sweep: Sweep | None = None,
) -> None:
    """Submit one run as a job, or several as a job array; or handle --dry-run, --test-only and --local.

    Args:
        sweep: that the runs belong to; its file is written before they are submitted.
    """
    if options.local:
        run_all_locally(runs, job_options)
        return
    first = runs[0]
    name = first.config.task_name if sweep is None else sweep.folder.name
    executor = JobExecutor(job_options, first.folder / "slurm", name, [run.folder for run in runs])
    check_log_folder(executor.folder)
    if is_dry_run(options):
        script = executor.script(len(runs))
        print(script) if options.dry_run else test_only(script)
        return
    require_slurm()
    if sweep is not None:
        sweep.save()
    for run in runs:
        run.freeze()
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


def run_all_locally(runs: Sequence[PlannedRun], job_options: JobOptions) -> None:
    """Run all runs on this machine, one after the other; one that fails does not stop the others.

    Raises:
        SystemExit: a run failed; the status is that of the first one that did.
    """
    for run in runs:
        run.freeze()
    statuses = [call_locally(run.command(), job_options.ranks) for run in runs]
    if any(statuses):
        raise SystemExit(next(filter(None, statuses)))


def run_locally(command: PackageCommand, ranks: int) -> None:
    """Run a command on this machine, with torchrun if there are several ranks.

    Raises:
        SystemExit: the command failed; it has printed its error.
    """
    status = call_locally(command, ranks)
    if status:
        raise SystemExit(status)


def call_locally(command: PackageCommand, ranks: int) -> int:
    """Run a command on this machine, as `run_locally` does, and return its exit status."""
    line = [sys.executable, "-m"]
    if ranks > 1:
        line += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    line += [f"autoreid.{command.module}", *command.arguments]
    print(f"+ {shlex.join(line)}", file=sys.stderr)
    return subprocess.run(line, cwd=command.folder).returncode


def submit_run(task: Task, arguments: Sequence[str] | None) -> int:
    """Run jobs/submit_search.py or jobs/submit_train.py and return the exit status."""
    example = "darts_triplet" if task == "search" else "baseline_resnet50"
    noun = "search" if task == "search" else "training"
    swept = "search.alpha_learning_rate=3e-4,0.02" if task == "search" else "training.learning_rate=3e-4,1e-3"
    parser = make_parser(
        f"submit_{task}",
        f"Submit a {noun} to Slurm. Config, data, network and run folder are checked first, on this machine.",
        f"  python jobs/submit_{task}.py --nodes 2 --gpus 8 --config configs/{example}.yaml\n"
        f"  python jobs/submit_{task}.py --gpus 4 --time 1-00:00:00 --partition gpu --config configs/{example}.yaml "
        "data.root=/data\n"
        f"  python jobs/submit_{task}.py --gpus 1 --seeds 0 1 2 --config configs/{example}.yaml --dry-run\n"
        f"  python jobs/submit_{task}.py --gpus 1 --config configs/{example}.yaml --array-limit 4 \\\n"
        f"      --sweep {swept} --sweep seed=0..4\n",
    )
    add = parser.add_argument
    add("--config", type=expand, required=True, metavar="FILE", help="YAML recipe, as in configs/")
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="submit a job array with one run for each seed, named TASK_NAME-seedN",
    )
    add_sweep_option(parser)
    add("overrides", nargs="*", metavar="section.key=value", help="values that override the recipe's")
    options = parser.parse_intermixed_args(arguments)
    job_options = read_job_options(vars(options))
    if options.sweep:
        return submit_sweep(task, options, job_options)
    overrides = [
        [*options.overrides, *seed]
        for seed in seed_overrides(options.config, options.overrides, options.seeds)
    ]
    runs = plan_runs(options.config, overrides, task, job_options)
    if not options.local:
        check_array_size(len(runs))
    from autoreid.commands.train import check

    check([run.config for run in runs], job_options.ranks, may_generate=not is_dry_run(options))
    submit_runs(runs, job_options, options)
    return 0


def submit_sweep(task: Task, options: argparse.Namespace, job_options: JobOptions) -> int:
    """Submit the runs of a sweep that have no result, and return the exit status."""
    if options.seeds:
        seeds = ",".join(map(str, options.seeds))
        raise ConfigError(f"command line: --seeds cannot be combined with --sweep; add --sweep seed={seeds}")
    sweep, runs, names = plan_sweep(options.config, options.overrides, options.sweep, task, job_options)
    if not options.local:
        check_array_size(len(runs))
    from autoreid.commands.train import check
    from autoreid.slurm.sweep_results import show_results
    from autoreid.sweeps.results import write_hparams

    check([run.config for run in runs], job_options.ranks, not is_dry_run(options), names)
    folder = os.path.relpath(sweep.folder)
    print(f"sweep {folder}: {len(sweep.runs)} runs, {len(runs)} of them to submit", file=sys.stderr)
    if runs and not options.local:
        submit_runs(runs, job_options, options, sweep)
    if is_dry_run(options):
        return 0
    sweep.save()  # not only by submit_runs: all runs may have finished
    write_hparams(sweep)
    if options.local:
        try:
            run_all_locally(runs, job_options)
        finally:
            show_results(sweep)
    print(f"show the results with: python jobs/sweep.py {shlex.quote(folder)}", file=sys.stderr)
    return 0


def seed_overrides(recipe: Path, overrides: Sequence[str], seeds: Sequence[int] | None) -> list[list[str]]:
    """Return the overrides of seed and task name for the run of each seed; without seeds, none for a single run."""
    if not seeds:
        return [[]]
    name = load_config(recipe, overrides).task_name
    return [[f"seed={seed}", f"task_name={name}-seed{seed}"] for seed in dict.fromkeys(seeds)]
