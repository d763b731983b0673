"""Conduct or plan a study: does a search find better networks than chance, on these data and by these recipes?"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch

from autoreid.commands.train import run as run_search
from autoreid.config import MAY_DIFFER, Config
from autoreid.data.training_data import build_training_data, generate_people
from autoreid.distributed import StopSignal, World
from autoreid.errors import DivergedError
from autoreid.files import make_folder
from autoreid.models import check_input_size
from autoreid.reporting.logs import start_logging
from autoreid.reporting.run_record import open_run
from autoreid.spaces.build import build_model
from autoreid.trials.alone import single_process
from autoreid.trials.cost import search_seconds, trial_seconds
from autoreid.trials.runner import TrialRunner
from autoreid.trials.shared_units import Unit, share_units
from autoreid.trials.study import Study
from autoreid.trials.study_results import finish
from autoreid.trials.trial_file import TrialFile

_log = logging.getLogger(__name__)

#: Number of random networks that are built before the first search, because some options do not fit all of them.
_CHECKED = 8


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


def execute(options: argparse.Namespace, searches: Mapping[str, Config], recipe: Config) -> None:
    """Plan or conduct a study."""
    study = Study(options.output, searches, recipe, options.random)
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
