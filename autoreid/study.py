"""python -m autoreid.study: does a search find better networks than chance, on these data and by these recipes?"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from autoreid.cli import run_command
from autoreid.data.training_data import build_training_data, generate_people
from autoreid.distributed import StopSignal, World
from autoreid.errors import ConfigError, DivergedError
from autoreid.files import make_folder
from autoreid.models import check_input_size
from autoreid.recipes import load_config, override_of
from autoreid.reporting.logs import start_logging
from autoreid.reporting.run_record import open_run
from autoreid.spaces import build_model
from autoreid.train import MAY_DIFFER
from autoreid.train import run as run_search
from autoreid.trials.alone import single_process
from autoreid.trials.cost import search_seconds, trial_seconds
from autoreid.trials.runner import TrialRunner
from autoreid.trials.shared_units import Unit, share_units
from autoreid.trials.study import Study
from autoreid.trials.study_results import finish
from autoreid.trials.trial import require_derived
from autoreid.trials.trial_file import TrialFile

# Not __name__, which is __main__ when this is the command.
_log = logging.getLogger("autoreid.study")

_EXAMPLES = """\
examples:
  python -m autoreid.study --search configs/quickstart.yaml --train configs/quickstart_train.yaml --searches 3 \\
      --random 8 --output studies/quickstart --plan
  python -m autoreid.study --search configs/quickstart.yaml --train configs/quickstart_train.yaml --searches 3 \\
      --random 8 --output studies/quickstart search.order=second --train-set training.epochs=6

Runs S searches with the seeds 0 to S-1, trains each found network once, and R random networks of the same sizes and
operations. The folder gets study.json, study.png, trials.jsonl, and the run folders of the searches. The same command
resumes, and more searches or random networks are added to those that are there. Several processes with the same
--output share the work. jobs/submit_study.py submits a study to Slurm.
"""

#: Number of random networks that are built before the first search, because some options do not fit all of them.
_CHECKED = 8


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.study",
        description="Compare networks that a search finds with random ones.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="time a step of a search and of a training, and print the total cost",
    )
    options = parser.parse_intermixed_args(arguments)
    check_options(options)
    return options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a study consists of to a parser."""
    add = parser.add_argument
    add("--search", type=Path, required=True, metavar="FILE", help="recipe of the searches")
    add("--train", type=Path, required=True, metavar="FILE", help="recipe that trains the networks")
    add("--searches", type=int, required=True, metavar="S", help="number of searches")
    add("--random", type=int, required=True, metavar="R", help="number of random networks")
    add("--output", type=Path, required=True, metavar="FOLDER", help="folder of the study")
    add(
        "--train-set",
        nargs="+",
        action="extend",
        default=[],
        metavar="section.key=value",
        help="values that replace those of the training's recipe",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="values that replace the search recipe's")


def check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError if a number of networks is out of range."""
    for name in ("searches", "random"):
        if getattr(options, name) < 1:
            raise ConfigError(f"command line: --{name} {getattr(options, name)}: must be at least 1")


def search_overrides(folder: Path, seed: int) -> list[str]:
    """Return the overrides that make a search that of a study."""
    folders = {"output_dir": folder / "runs", "genotype_dir": folder / "genotypes"}
    own = [override_of(key, value) for key, value in folders.items()]
    return [f"seed={seed}", f"task_name=search{seed}", *own]


def read_study(options: argparse.Namespace) -> Study:
    """Read the recipes, and check that they agree with what the folder has.

    Raises:
        ConfigError: a recipe is wrong, or the folder belongs to another study.
    """
    folder: Path = options.output
    searches = {
        f"search{seed}": load_config(options.search, [*options.overrides, *search_overrides(folder, seed)])
        for seed in range(options.searches)
    }
    recipe = load_config(options.train, options.train_set)
    if searches["search0"].task != "search":
        raise ConfigError(
            f"{options.search}: task: train; expected task: search, such as configs/quickstart.yaml"
        )
    require_derived(recipe, options.train)
    study = Study(folder, searches, recipe, options.random)
    for name, config in searches.items():
        try:
            study.run_folder(name).check_claim(config, MAY_DIFFER)
        except ConfigError as error:
            raise ConfigError(f"--output {folder}: the study there has other searches: {error}") from error
    return study


def check_trainings(study: Study) -> None:
    """Check data and networks of the trainings; synthetic people that do not exist are generated first.

    Raises:
        ConfigError, DataError: errors that any training would raise at its start.
    """
    recipe = study.recipe
    generate_people(recipe.data)
    # One network need not have every operation.
    for example in islice(study.examples(), _CHECKED):
        network = build_model("derived", 1, **example.config.model.options)
        check_input_size(network, recipe.data.height, recipe.data.width)
    build_training_data(recipe, World(0, 1, 0, torch.device("cpu")))


def plan(study: Study) -> str:
    """Return what the study has to do, and how long that takes."""
    first = next(iter(study.searches.values()))
    with single_process(first.distributed, "a study") as world:
        per_search = search_seconds(first, world)
    with single_process(study.recipe.distributed, "a study") as world:
        per_training = trial_seconds(next(study.examples()), world)
    finished = {name for name in study.searches if study.is_finished(name)}
    names, known = list(study.searches), TrialFile(study.folder).read()
    trained = sum(trial.key in known for trial in study.trials(study.trial_names).values())
    count = len(study.trial_names)
    left = per_search * (len(names) - len(finished)) + per_training * (count - trained)
    return "\n".join(
        [
            f"searches:  {len(names)}, {len(finished)} of them finished; {_duration(per_search)} each",
            f"trainings: {count}, {trained} of them finished; {_duration(per_training)} each",
            f"left:      {_duration(left)} in one process; estimated from one step of each, without loading the data "
            f"and measuring retrieval",
        ]
    )


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def do_searches(study: Study, stop: StopSignal) -> bool:
    """Run the searches that are not finished; return whether all have finished or diverged."""
    first = next(iter(study.searches.values()))
    diverged: set[str] = set()

    def is_done(name: str) -> bool:
        return name in diverged or study.is_finished(name)

    def search(name: str) -> None:
        try:
            _search(study, name, world, stop)
        except DivergedError as error:
            diverged.add(name)
            _log.error("%s failed: %s", name, error)

    with single_process(first.distributed, "a study") as world:
        units = [Unit(name, partial(is_done, name), partial(search, name)) for name in study.searches]
        return share_units(units, study.folder / "locks", stop)


def _search(study: Study, name: str, world: World, stop: StopSignal) -> None:
    place = f"{name} ({list(study.searches).index(name) + 1} of {len(study.searches)})"
    _log.info("%s: log in %s", place, study.run_folder(name).logs)
    try:
        with open_run(study.searches[name], MAY_DIFFER) as folder:
            run_search(study.searches[name], world, folder, stop)
    finally:
        start_logging(study.folder / "logs", world.rank)  # the search has its own log
    if not stop.received:
        _log.info("%s: %.0f s", place, study.search_seconds(name))


def do_trainings(study: Study, stop: StopSignal) -> dict[str, dict[str, Any]] | None:
    """Train the networks of the finished searches, and random ones; return the results by name, or None if stopped."""
    trials = study.trials(study.trial_names)
    with single_process(study.recipe.distributed, "a study") as world:
        results = TrialRunner.open(study.folder, study.recipe, world, stop).run(trials)
    return None if results is None else dict(zip(trials, results, strict=True))


def run(options: argparse.Namespace) -> None:
    """Plan or conduct a study."""
    study = read_study(options)
    check_trainings(study)
    if options.plan:
        print(plan(study))
        return
    make_folder(study.folder, "choose another --output")
    with StopSignal() as stop:
        start_logging(study.folder / "logs", 0)
        results = do_trainings(study, stop) if do_searches(study, stop) else None
    if results is None:
        print(f"stopped by {stop.received}; to resume, repeat the same command", file=sys.stderr)
        return
    finish(study, results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        run(parse(sys.argv[1:] if arguments is None else arguments))
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
