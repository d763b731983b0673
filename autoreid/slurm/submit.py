"""Checks a search or training as its ranks would, and submits it: the command lines of jobs/submit_*.py."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from autoreid.config import Config
from autoreid.data.training_data import generate_people
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.files import write_atomically
from autoreid.recipes import load_config
from autoreid.reporting.history import read_history, record
from autoreid.reporting.run_folder import RunFolder
from autoreid.slurm.executor import JobExecutor
from autoreid.slurm.queue import ACTIVE, job_states, require_slurm
from autoreid.slurm.request import JobRequest, add_options, read_request
from autoreid.slurm.tasks import PackageCommand
from autoreid.train import MAY_DIFFER, build_task, with_genotype

_EXIT_STATUS = """\
Exit status: 0 submitted (or, with --local, done); 1 Slurm refused; 2 the command line, config or data is wrong."""


def make_parser(program: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser with Slurm's options and the ways to submit; commands add their own."""
    parser = argparse.ArgumentParser(
        prog=f"python jobs/{program}.py",
        description=description,
        epilog=f"examples:\n{examples}\n{_EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--dry-run", action="store_true", help="print the sbatch script and leave nothing behind"
    )
    how.add_argument("--test-only", action="store_true", help="have Slurm validate the script")
    how.add_argument(
        "--local", action="store_true", help="run the same as processes on this machine, here and now"
    )
    add_options(parser)
    return parser


@dataclass(frozen=True)
class PlannedRun:
    """A run that a job will do: its resolved config, frozen while the job waits, and its folder."""

    config: Config
    folder: Path

    @property
    def frozen_config(self) -> Path:
        """Where the job reads the config, which nobody edits meanwhile."""
        return self.folder / "slurm" / "config.yaml"

    def command(self) -> PackageCommand:
        """What the job's tasks run."""
        return PackageCommand("train", ("--config", str(self.frozen_config)), Path.cwd())

    def freeze(self) -> None:
        """Writes the config for the job."""
        self.frozen_config.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.frozen_config, self.config.to_yaml().encode())


def plan_run(
    recipe: Path, overrides: Sequence[str], task: Literal["search", "train"], request: JobRequest, draw: bool
) -> PlannedRun:
    """Checks everything that would end the run at its start: config, data, network, batch over ranks, run folder.

    Args:
        draw: whether synthetic people that are not there yet may be drawn.

    Raises:
        ConfigError, DataError: what the job's ranks would say, without having waited in a queue.
    """
    config = with_genotype(load_config(recipe, overrides))
    if config.task != task:
        raise ConfigError(f"{recipe}: task: {config.task}; submit it with jobs/submit_{config.task}.py")
    if request.gpus and config.distributed.device == "auto":
        # A job that asked for GPUs must not train on CPUs because a driver is missing.
        distributed = config.distributed.model_copy(update={"device": "cuda"})
        config = config.model_copy(update={"distributed": distributed})
    folder = (config.output_dir / config.task_name).absolute()
    RunFolder(folder).check_claim(config, MAY_DIFFER)
    refuse_active(folder)
    if draw:
        generate_people(config.data)
    undrawn = [name for name in config.data.synthetic if not (config.data.root / name).exists()]
    if undrawn:
        print(f"not checked: the data, for {', '.join(undrawn)} will be drawn on submission", file=sys.stderr)
    else:
        build_task(config, World(0, request.ranks, 0, torch.device("cpu")))
    return PlannedRun(config, folder)


def refuse_active(folder: Path) -> None:
    """Raises ConfigError if a job that was submitted for a run folder is still in Slurm's queue."""
    jobs = {event.job for event in read_history(folder) if event.kind == "submitted" and event.job}
    for job, state in job_states(jobs).items():
        if state.state in ACTIVE:
            raise ConfigError(
                f"{folder}: job {job} of this run is {state.state}; give another task_name, or cancel it: "
                f"python jobs/cancel.py {folder}"
            )


def only_shown(how: argparse.Namespace) -> bool:
    """Whether nothing may be left behind."""
    return bool(how.dry_run or how.test_only)


def submit_runs(runs: Sequence[PlannedRun], request: JobRequest, how: argparse.Namespace) -> list[str]:
    """Submits runs as one job, or as an array, or does with them what --dry-run, --test-only or --local says.

    Returns:
        Job ids, one a run; none if nothing was submitted.
    """
    first = runs[0]
    name = first.config.task_name
    executor = JobExecutor(request, first.folder / "slurm", name, [run.folder for run in runs])
    if how.dry_run:
        print(executor.script(len(runs)))
        return []
    if how.test_only:
        test_only(executor.script(len(runs)))
        return []
    if not how.local:
        require_slurm()
    for run in runs:
        run.freeze()
    if how.local:
        for run in runs:
            run_here(run.command(), request.ranks)
        return []
    ids = executor.launch([run.command() for run in runs])
    for run, job in zip(runs, ids, strict=True):
        record(run.folder, "submitted", job=(job, 0))
        announce(job, run.folder, executor.folder, request, run.config.task)
    return ids


def announce(job: str, folder: Path, logs: Path, request: JobRequest, what: str) -> None:
    """Says where a job and its output are."""
    nodes = "1 node" if request.nodes == 1 else f"{request.nodes} nodes"
    ranks = "1 rank" if request.ranks == 1 else f"{request.ranks} ranks"
    print(f"job {job}: {what}, {ranks} on {nodes}")
    print(f"  run folder: {folder}")
    print(f"  log:        {logs / f'{job}_0_log.out'}")


def test_only(script: str) -> None:
    """Has sbatch validate a script; raises ConfigError with what it says against it."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=60
        )
    except OSError as error:
        raise ConfigError("sbatch: no such program; --test-only needs a login node") from error
    said = done.stderr.strip().removeprefix("sbatch: ")
    if done.returncode:
        raise ConfigError(f"sbatch --test-only: {said}")
    print(said)


def run_here(command: PackageCommand, ranks: int) -> None:
    """Runs a command as processes on this machine, started by torchrun if there are several.

    Raises:
        SystemExit: it failed; its message is on the console.
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
    """The command of jobs/submit_search.py and jobs/submit_train.py; returns its exit status."""
    example = "darts_triplet" if task == "search" else "baseline_resnet50"
    parser = make_parser(
        f"submit_{task}",
        f"Submits a {task} to Slurm, after checking all that can be checked before it waits in a queue.",
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
        help="an array with a run for each seed, named TASK_NAME-seedN",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    options = parser.parse_intermixed_args(arguments)
    request = read_request(vars(options))
    runs = [
        plan_run(options.config, [*options.overrides, *of_seed], task, request, draw=not only_shown(options))
        for of_seed in seed_overrides(options.config, options.overrides, options.seeds)
    ]
    submit_runs(runs, request, options)
    return 0


def seed_overrides(recipe: Path, overrides: Sequence[str], seeds: Sequence[int] | None) -> list[list[str]]:
    """The overrides that make a run of each seed; for no seeds, one run as the recipe says."""
    if not seeds:
        return [[]]
    name = load_config(recipe, overrides).task_name
    return [[f"seed={seed}", f"task_name={name}-seed{seed}"] for seed in dict.fromkeys(seeds)]
