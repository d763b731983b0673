"""The jobs of a study: searches and trainings as arrays, and the table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from autoreid.commands.study import check_trainings, plan
from autoreid.commands.train import check
from autoreid.config import Config
from autoreid.files import make_folder, write_atomically
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.planning import PlannedRun, check_not_queued, plan_runs
from autoreid.slurm.stages import Stage, submit_stages
from autoreid.slurm.study_shares import finished_names, share_folder, share_names
from autoreid.slurm.submit import is_dry_run
from autoreid.slurm.tasks import PackageCommand
from autoreid.study import search_overrides
from autoreid.trials.study import Study


def execute(
    options: argparse.Namespace,
    job_options: JobOptions,
    searches: Mapping[str, Config],
    recipe: Config,
    shown_by: str,
) -> None:
    """Plan a study, or check and submit its jobs.

    Args:
        shown_by: command that shows the progress of the jobs.
    """
    study = Study(options.output, searches, recipe, options.random)
    if options.plan or not is_dry_run(options):
        check_trainings(study)
    if options.plan:
        print(plan(study))
        return
    planned = plan_searches(options, study, job_options)
    check_not_queued(sorted((study.folder / "runs").glob("trainings*")))
    stages = plan_stages(study, planned, shares_at_once(options, job_options), job_options)
    freeze_all = partial(freeze, study, planned, job_options)
    submit_stages(stages, options, freeze_all, shown_by)


def plan_searches(options: argparse.Namespace, study: Study, job_options: JobOptions) -> list[PlannedRun]:
    """Check and plan the searches that have not finished.

    Raises:
        ConfigError, DataError: errors in the searches.
    """
    overrides = [
        [*options.overrides, *search_overrides(study.folder, seed)]
        for seed, name in enumerate(study.searches)
        if not study.is_finished(name)
    ]
    runs = plan_runs(options.search, overrides, "search", job_options)
    check([run.config for run in runs], job_options.ranks, may_generate=not is_dry_run(options))
    return runs


def plan_stages(
    study: Study, searches: Sequence[PlannedRun], at_once: int, job_options: JobOptions
) -> list[Stage]:
    """Return the jobs of a study: those that have something to do, and the table."""
    single = job_options.model_copy(
        update={"nodes": 1, "gpus": min(job_options.gpus, 1), "tasks": None, "gres": None}
    )
    small = single.model_copy(update={"gpus": 0, "array_limit": None})
    stages = []
    if searches:
        runs = [search.folder for search in searches]
        commands = [search.command() for search in searches]
        stages.append(_stage(study, "search", commands, job_options, runs))
    shares = min(at_once, len(study.trial_names))
    left = set(study.trial_names) - finished_names(study, study.trial_names)
    busy = [share for share in range(shares) if not left.isdisjoint(share_names(study, share, shares))]
    if busy:
        runs = [share_folder(study.folder, share) for share in busy]
        commands = [_part(study, "--share", str(share), str(shares)) for share in busy]
        stages.append(_stage(study, "train", commands, single, runs))
    table = Stage("table", [_part(study, "--table")], small, study.folder / "slurm", (), "afterany")
    return [*stages, table]


def _stage(
    study: Study, name: str, commands: Sequence[PackageCommand], job_options: JobOptions, runs: Sequence[Path]
) -> Stage:
    # afterany: a search or training that failed does not hold up the others.
    return Stage(name, commands, job_options, runs[0] / "slurm", runs, "afterany", study.folder.name)


def _part(study: Study, *part: str) -> PackageCommand:
    """Return the command of a job after the searches, which reads the copies of the recipes."""
    counts = ["--searches", str(len(study.searches)), "--random", str(study.num_random)]
    recipes = ["--search", str(_frozen(study, "search")), "--train", str(_frozen(study, "train"))]
    arguments = [*part, *counts, *recipes, "--output", str(study.folder)]
    return PackageCommand("slurm.study_part", arguments, Path.cwd())


def _frozen(study: Study, recipe: str) -> Path:
    """Return the path of the copy of a recipe that the jobs read, so that later edits of it do not affect them."""
    return study.folder / "slurm" / f"{recipe}.yaml"


def freeze(study: Study, searches: Sequence[PlannedRun], job_options: JobOptions) -> None:
    """Write the copies of the recipes that the jobs read."""
    for search in searches:
        search.freeze()
    make_folder(study.folder / "slurm", "choose another --output")
    for name, recipe in (("search", study.searches["search0"]), ("train", study.recipe)):
        write_atomically(_frozen(study, name), _on_gpus(recipe, job_options).to_yaml().encode())


def _on_gpus(config: Config, job_options: JobOptions) -> Config:
    """Return a config whose job fails, rather than computes on CPUs, if a driver is missing."""
    if not job_options.gpus or config.distributed.device != "auto":
        return config
    distributed = config.distributed.model_copy(update={"device": "cuda"})
    return config.model_copy(update={"distributed": distributed})


def shares_at_once(options: argparse.Namespace, job_options: JobOptions) -> int:
    """Return how many array tasks share the trainings; more than there are trainings means one for each."""
    if options.trainings_at_once is not None:
        return int(options.trainings_at_once)
    if options.local:
        return 1
    return job_options.array_limit or options.searches + options.random
