"""Submit the whole pipeline as dependent jobs: searches (one per array task), a tournament, derive, train, evaluate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from autoreid.config import Config
from autoreid.errors import ConfigError
from autoreid.named_paths import named_paths
from autoreid.recipes import load_config, override_of
from autoreid.slurm.job_options import JobOptions, read_job_options
from autoreid.slurm.planning import PlannedRun, check_not_queued, plan_runs
from autoreid.slurm.stages import Stage, submit_stages
from autoreid.slurm.submit import is_dry_run, make_parser, seed_overrides
from autoreid.slurm.sweep import add_sweep_option
from autoreid.slurm.tasks import PackageCommand
from autoreid.trials.trial import require_derived

_EXAMPLES = """\
  python jobs/submit_pipeline.py --gpus 8 --seeds 0 1 2 --config configs/darts_triplet.yaml \\
      --train-config configs/retrain.yaml --data data/market1501 data/dukemtmc
  python jobs/submit_pipeline.py --gpus 0 --local --seeds 0 --config configs/quickstart.yaml \\
      --train-config configs/quickstart_train.yaml
"""

#: Fraction of identities that a tournament holds out if neither recipe says it.
_HELD_OUT = 0.2


class Pipeline(NamedTuple):
    """The planned searches, the recipe of the training, and all jobs."""

    searches: list[PlannedRun]
    recipe: Config
    stages: list[Stage]


def plan_pipeline(options: argparse.Namespace, job_options: JobOptions) -> Pipeline:
    """Plan the jobs, and check configs, run folders and queue. `commands.pipeline.check` does the rest.

    Raises:
        ConfigError: an error in any of the stages.
    """
    overrides = [
        [*options.overrides, *seed]
        for seed in seed_overrides(options.config, options.overrides, options.seeds)
    ]
    searches = plan_runs(options.config, overrides, "search", job_options)
    name = options.name or f"{load_config(options.config, options.overrides).task_name}_found"
    recipe = load_config(options.train_config, [override_of("task_name", name), *options.train])
    require_derived(recipe, options.train_config)
    here = Path.cwd()
    derived = here / "derived" / name
    run = (recipe.output_dir / name).absolute()
    check_not_queued([run])
    folders = [str(search.folder) for search in searches]
    tournament = here / "tournaments" / name
    several = len(folders) > 1 or options.random > 0
    chosen = str(tournament) if several else folders[0]
    derive = [chosen, *options.train, "--config", str(options.train_config.absolute())]
    derive += ["--output", str(derived)]
    device = ["distributed.device=cuda"] if job_options.gpus and recipe.distributed.device == "auto" else []
    small = job_options.model_copy(
        update={"nodes": 1, "gpus": 0, "tasks": 1, "gres": None, "array_limit": None}
    )
    single = job_options.model_copy(
        update={"nodes": 1, "gpus": min(job_options.gpus, 1), "tasks": None, "gres": None}
    )
    stages = [
        Stage(
            "search",
            [search.command() for search in searches],
            job_options,
            searches[0].folder / "slurm",
            [search.folder for search in searches],
        ),
        Stage("derive", [PackageCommand("derive", derive, here)], small, derived / "slurm", (), "afterok"),
        Stage(
            "train",
            [PackageCommand("train", ["--config", str(derived / "config.yaml"), *device], here)],
            job_options,
            run / "slurm",
            [run],
            "afterok",
        ),
    ]
    if several:
        arguments = [
            *folders,
            "--random",
            str(options.random),
            "--config",
            str(options.train_config.absolute()),
            "--output",
            str(tournament),
        ]
        held_out = [*options.train, *held_out_overrides(recipe, searches[0].config)]
        load_config(options.train_config, held_out)  # raises now what the tournament would
        command = PackageCommand("tournament", [*arguments, *held_out, *device], here)
        # afterany: the pipeline continues if the search of one seed fails.
        stages.insert(1, Stage("tournament", [command], single, tournament / "slurm", (), "afterany"))
    if options.data:
        evaluation = run.with_name(f"{name}_evaluation")
        arguments = [
            "--checkpoint",
            str(run),
            *(part for data in options.data for part in ("--data", str(data))),
        ]
        if recipe.evaluation.keep_same_camera:
            arguments.append("--keep-same-camera")
        command = PackageCommand("evaluate", [*arguments, "--output", str(evaluation)], here)
        stages.append(Stage("evaluate", [command], single, evaluation / "slurm", (), "afterok"))
    return Pipeline(searches, recipe, stages)


def held_out_overrides(recipe: Config, search: Config) -> list[str]:
    """Return the overrides with which a tournament measures on held-out identities instead of test images."""
    if recipe.evaluation.split == "held_out":
        return []
    fraction = recipe.data.held_out_fraction or search.data.held_out_fraction or _HELD_OUT
    return ["evaluation.split=held_out", f"data.held_out_fraction={fraction}", "data.targets=[]"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/submit_pipeline.py and return its exit status."""
    parser = make_parser(
        "submit_pipeline",
        "Submit searches, and the jobs that derive, train and evaluate the best network that they find.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="recipe of the search")
    add(
        "--train-config",
        type=Path,
        required=True,
        metavar="FILE",
        help="recipe of the training of the found network",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="run one search for each seed, as a job array; a tournament chooses one",
    )
    add(
        "--random",
        type=int,
        default=0,
        metavar="N",
        help="add N random networks of the same sizes to the tournament, as a control; one of them may win",
    )
    add("--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="data sets to evaluate on")
    add("--name", help="task name of the training (default: the task name of the search, with _found)")
    add(
        "--train",
        action="append",
        default=[],
        metavar="section.key=value",
        help="value that overrides the training recipe's; can be repeated",
    )
    add_sweep_option(
        parser,
        "its tournament compares searches of one recipe; sweep with jobs/submit_search.py, and choose among the found "
        "networks with python -m autoreid.tournament",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="values that override the search recipe's")
    options = parser.parse_intermixed_args(arguments)
    if options.random < 0:
        raise ConfigError(f"command line: --random {options.random}: must be at least 0")
    job_options = read_job_options(vars(options))
    searches, recipe, stages = plan_pipeline(options, job_options)
    from autoreid.commands.pipeline import check, check_targets

    writes = not is_dry_run(options)
    check([run.config for run in searches], job_options.ranks, recipe, writes)
    if writes:
        # Not before: synthetic people may have been generated just now.
        check_targets(named_paths("--data", [str(data) for data in options.data]), recipe)
    submit_stages(stages, options, partial(_freeze, searches), "python jobs/status.py")
    return 0


def _freeze(searches: Sequence[PlannedRun]) -> None:
    for search in searches:
        search.freeze()
