"""Check a sweep as a whole, before any of its runs is submitted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from autoreid.errors import ConfigError, named
from autoreid.recipes import load_config, override_of
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.planning import PlannedRun, Task, check_not_queued, resolve_run
from autoreid.sweeps.sweep import Combination, Sweep, combinations, in_words, run_name
from autoreid.sweeps.swept_key import SweptKey, parse_swept_keys


def add_sweep_option(parser: argparse.ArgumentParser, refusal: str | None = None) -> None:
    """Add --sweep to the parser of a command.

    Args:
        refusal: why the command has no sweeps, and what to use instead; None if it has.
    """
    if refusal is not None:
        parser.add_argument("--sweep", action=_Refuse, help=f"not for this command: {refusal}")
        return
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="submit a job array with one run for each value, such as training.learning_rate=0.01,3e-4 or seed=0..4; "
        "can be repeated for the product of several keys",
    )


class _Refuse(argparse.Action):
    """An option that only says why a command does not have it."""

    def __call__(self, *_: object) -> None:
        raise ConfigError(f"command line: --sweep: {self.help}")


class PlannedSweep(NamedTuple):
    """A sweep, those of its runs that are to be submitted, and what errors call these."""

    sweep: Sweep
    runs: Sequence[PlannedRun]
    names: Sequence[str]


def plan_sweep(
    recipe: Path,
    overrides: Sequence[str],
    sweeps: Sequence[str],
    task: Task,
    job_options: JobOptions,
) -> PlannedSweep:
    """Plan all runs of a sweep, and check what needs no PyTorch, as `plan_runs` does.

    Runs that have their result need not be submitted.

    Args:
        overrides: of all runs.
        sweeps: the values of --sweep.

    Raises:
        ConfigError: the error of the first combination that cannot be run; names its values.
    """
    keys = parse_swept_keys(sweeps, overrides)
    planned = _resolve(recipe, overrides, keys, task, job_options)
    _check_distinct(planned)
    values = {
        run.config.task_name: {key: value.value for key, value in combination.items()}
        for combination, run in planned
    }
    first = planned[0][1]
    own = Sweep(first.folder.parent, first.config, tuple(swept.key for swept in keys), values)
    sweep = own.added_to_stored()
    left = [(one, run) for one, run in planned if not sweep.is_finished(run.config.task_name)]
    runs = [run for _, run in left]
    check_not_queued([run.folder for run in runs])
    return PlannedSweep(sweep, runs, [_name(combination) for combination, _ in left])


def _resolve(
    recipe: Path, overrides: Sequence[str], keys: Sequence[SweptKey], task: Task, job_options: JobOptions
) -> list[tuple[Combination, PlannedRun]]:
    """Resolve the configs of all combinations; the runs are in a folder with the recipe's task name."""
    planned = []
    for combination in combinations(keys):
        with named(_name(combination)):
            chosen = [*overrides, *(f"{key}={value.text}" for key, value in combination.items())]
            recipes_own = load_config(recipe, chosen)
            name = recipes_own.task_name
            folders = {"output_dir": recipes_own.output_dir, "genotype_dir": recipes_own.genotype_dir}
            own = [override_of(key, folder / name) for key, folder in folders.items()]
            own.append(override_of("task_name", run_name(combination)))
            planned.append((combination, resolve_run(recipe, [*chosen, *own], task, job_options)))
    return planned


def _check_distinct(planned: Sequence[tuple[Combination, PlannedRun]]) -> None:
    """Raise ConfigError if two combinations are the same run, or would share a folder."""
    seen: dict[str, Combination] = {}
    names: dict[str, Combination] = {}
    for combination, run in planned:
        same = run.config.model_copy(update={"task_name": "same"}).model_dump_json()
        for known, key, problem in (
            (seen, same, "are the same run; remove one"),
            (names, run.config.task_name, f"have the same folder {run.folder.name}; sweep them separately"),
        ):
            if key in known:
                raise ConfigError(
                    f"command line: --sweep: {in_words(known[key])} and {in_words(combination)} {problem}"
                )
            known[key] = combination


def _name(combination: Combination) -> str:
    return f"--sweep {in_words(combination)}"
