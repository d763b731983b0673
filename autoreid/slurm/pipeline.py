"""The whole way as dependent jobs: searches (an array, one a seed), a tournament, derive, train, evaluate."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoreid.config import Config
from autoreid.data.datasets import read_folder
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.evaluate import named_paths
from autoreid.models import check_input_size
from autoreid.recipes import load_config
from autoreid.reporting.history import record
from autoreid.search.task import SearchTask
from autoreid.slurm.executor import JobExecutor
from autoreid.slurm.queue import require_slurm
from autoreid.slurm.request import JobRequest, read_request
from autoreid.slurm.submit import (
    PlannedRun,
    announce,
    make_parser,
    only_shown,
    plan_run,
    refuse_active,
    run_here,
    seed_overrides,
    test_only,
)
from autoreid.slurm.tasks import PackageCommand
from autoreid.spaces import build_model
from autoreid.train import build_task

_EXAMPLES = """\
  python jobs/submit_pipeline.py --gpus 8 --seeds 0 1 2 --config configs/darts_triplet.yaml \\
      --train-config configs/retrain.yaml --data data/market1501 data/dukemtmc
  python jobs/submit_pipeline.py --gpus 0 --local --seeds 0 --config configs/quickstart.yaml \\
      --train-config configs/quickstart_train.yaml
"""

#: Fraction of identities that a tournament holds out if neither recipe says it.
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Stage:
    """One job, or array of jobs, of the pipeline.

    Attributes:
        name: such as "search".
        commands: one an element.
        folder: of the submitit files and logs.
        runs: run folders of the elements; none if the stage writes no run.
        waits_for: what the stage before must have done, "afterany" or "afterok"; None for the first.
    """

    name: str
    commands: Sequence[PackageCommand]
    request: JobRequest
    folder: Path
    runs: Sequence[Path] = ()
    waits_for: str | None = None

    def executor(self, before: str | None) -> JobExecutor:
        """The stage's executor, told which job it waits for."""
        request = self.request
        if before is not None:
            # A stage whose predecessor failed would wait for ever.
            slurm = {**request.slurm, "kill-on-invalid-dep": "yes"}
            wait = f"{self.waits_for}:{before}"
            request = request.model_copy(update={"dependency": wait, "slurm": slurm})
        return JobExecutor(request, self.folder, f"{self.folder.parent.name}-{self.name}", self.runs)


def plan_stages(options: argparse.Namespace, request: JobRequest) -> tuple[list[PlannedRun], list[Stage]]:
    """Checks all that can be checked before the first search ran, and lays out the jobs.

    Raises:
        ConfigError, DataError: what any of the stages would say.
    """
    draw = not only_shown(options)
    searches = [
        plan_run(options.config, [*options.overrides, *of_seed], "search", request, draw)
        for of_seed in seed_overrides(options.config, options.overrides, options.seeds)
    ]
    name = options.name or f"{load_config(options.config, options.overrides).task_name}_found"
    recipe = load_config(options.train_config, [f"task_name={name}", *options.train])
    if draw:
        for target, folder in named_paths("--data", [str(data) for data in options.data]).items():
            read_folder(folder, target)
        _check_training(recipe, searches[0].config, options.train_config)
    here = Path.cwd()
    derived = here / "derived" / name
    run = (recipe.output_dir / name).absolute()
    refuse_active(run)
    folders = [str(search.folder) for search in searches]
    tournament = here / "tournaments" / name
    chosen = str(tournament) if len(folders) > 1 else folders[0]
    derive = [chosen, *options.train, "--config", str(options.train_config.absolute())]
    derive += ["--output", str(derived)]
    device = ["distributed.device=cuda"] if request.gpus and recipe.distributed.device == "auto" else []
    small = request.model_copy(update={"nodes": 1, "gpus": 0, "tasks": 1, "gres": None, "array_limit": None})
    single = request.model_copy(
        update={"nodes": 1, "gpus": min(request.gpus, 1), "tasks": None, "gres": None}
    )
    stages = [
        Stage(
            "search",
            [search.command() for search in searches],
            request,
            searches[0].folder / "slurm",
            [search.folder for search in searches],
        ),
        Stage("derive", [PackageCommand("derive", derive, here)], small, derived / "slurm", (), "afterok"),
        Stage(
            "train",
            [PackageCommand("train", ["--config", str(derived / "config.yaml"), *device], here)],
            request,
            run / "slurm",
            [run],
            "afterok",
        ),
    ]
    if len(folders) > 1:
        competition = [
            *folders,
            "--config",
            str(options.train_config.absolute()),
            "--output",
            str(tournament),
        ]
        held_out = [*options.train, *held_out_overrides(recipe, searches[0].config)]
        load_config(options.train_config, held_out)  # raises now what the tournament would
        competition += [*held_out, *device]
        command = PackageCommand("tournament", competition, here)
        # A seed that failed does not hold up the others.
        stages.insert(1, Stage("tournament", [command], single, tournament / "slurm", (), "afterany"))
    if options.data:
        evaluation = run.with_name(f"{name}_evaluation")
        arguments = [
            "--checkpoint",
            str(run),
            *(part for data in options.data for part in ("--data", str(data))),
        ]
        command = PackageCommand("evaluate", [*arguments, "--output", str(evaluation)], here)
        stages.append(Stage("evaluate", [command], single, evaluation / "slurm", (), "afterok"))
    return searches, stages


def held_out_overrides(recipe: Config, search: Config) -> list[str]:
    """Return the overrides with which a tournament measures on held-out identities instead of test images."""
    if recipe.evaluation.split == "held_out":
        return []
    fraction = recipe.data.held_out_fraction or search.data.held_out_fraction or _HELD_OUT
    return ["evaluation.split=held_out", f"data.held_out_fraction={fraction}", "data.targets=[]"]


def _check_training(recipe: Config, search: Config, path: Path) -> None:
    """Raises what training the found network would, with the genotype of a search that has not begun."""
    if recipe.task != "train" or recipe.model.name != "derived":
        raise ConfigError(
            f"{path}: expected task: train and model.name: derived, such as configs/retrain.yaml"
        )
    alone = World(0, 1, 0, torch.device("cpu"))
    task = build_task(search, alone)[1]
    assert isinstance(task, SearchTask)  # noqa: S101 (plan_run saw to it)
    options = {**recipe.model.options, "genotype": str(task.genotype())}
    network = build_model("derived", 1, **options)
    check_input_size(network, recipe.data.height, recipe.data.width)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of jobs/submit_pipeline.py; returns its exit status."""
    parser = make_parser(
        "submit_pipeline",
        "Submits searches, and jobs that derive the best found network, train and evaluate it.",
        _EXAMPLES,
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="FILE", help="recipe of the search")
    add(
        "--train-config",
        type=Path,
        required=True,
        metavar="FILE",
        help="recipe of the found network's training",
    )
    add(
        "--seeds", type=int, nargs="+", metavar="SEED", help="searches, as an array; a tournament chooses one"
    )
    add("--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="data sets to evaluate on")
    add("--name", help="of the training (default: the search's, with _found)")
    add(
        "--train",
        action="append",
        default=[],
        metavar="section.key=value",
        help="value that replaces one of the training's recipe; may stand several times",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="values that replace the search recipe's")
    options = parser.parse_intermixed_args(arguments)
    request = read_request(vars(options))
    searches, stages = plan_stages(options, request)
    if only_shown(options):
        for stage in stages:
            print(f"# ---- {stage.name} ----", flush=True)
            script = stage.executor(None).script(len(stage.commands))
            print(script) if options.dry_run else test_only(script)
        return 0
    if not options.local:
        require_slurm()
    for search in searches:
        search.freeze()
    if options.local:
        for stage in stages:
            for command in stage.commands:
                run_here(command, stage.request.ranks)
        return 0
    _launch(stages)
    return 0


def _launch(stages: Sequence[Stage]) -> None:
    """Submits all stages, each to wait for the one before."""
    before: str | None = None
    for stage in stages:
        executor = stage.executor(before)
        ids = executor.launch(stage.commands)
        for job, run in zip(ids, stage.runs, strict=False):
            run.mkdir(parents=True, exist_ok=True)
            record(run, "submitted", job=(job, 0))
        for index, job in enumerate(ids):
            folder = stage.runs[index] if stage.runs else stage.folder.parent
            announce(job, folder, executor.folder, stage.request, stage.name)
        before = ids[0].partition("_")[0]
    print("python jobs/status.py shows how far they are", file=sys.stderr)
