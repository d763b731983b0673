"""Search and train in one process and without run folders: a process takes longer to start than to read its data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from autoreid.config import Config
from autoreid.data.training_data import build_search_data, build_training_data, prepare_data
from autoreid.distributed import StopSignal, World
from autoreid.models import count_parameters
from autoreid.reporting.run_report import NullReport
from autoreid.search.build import build_search
from autoreid.spaces.genotype import Genotype
from autoreid.training.loop import Task, run_epochs
from autoreid.training.task import build_training


class Trained(NamedTuple):
    """The result of a training.

    Attributes:
        map: mean over the targets of the network's mAP.
        maps: mAP on each target, by name.
        parameters: number of the network's parameters.
        seconds: processor time of the training, with its evaluation.
    """

    map: float
    maps: dict[str, float]
    parameters: int
    seconds: float


def train_network(config: Config, world: World) -> Trained:
    """Train the network of a config to the end, and measure it on the targets.

    The synthetic people that the config names are drawn first if they do not exist.
    """
    started = time.process_time()
    data = build_training_data(config, world, *prepare_data(config, world))
    task = build_training(config, data, world)
    _run(task, config)
    retrieval = task.state.retrieval
    assert retrieval is not None  # measured at the end of the last epoch
    of_targets = retrieval.get("targets") or {data.targets[0].name: retrieval}
    maps = {name: target["map"] for name, target in of_targets.items()}
    return Trained(
        retrieval["map"], maps, count_parameters(task.state.network), time.process_time() - started
    )


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        genotype: the genotype that was found.
        probabilities: those of all candidates at the end, (E, O) for each group of choices.
        undecided: number of undecided choices at the end; None if no alphas were trained.
        seconds: processor time of the search, with its read-out.
    """

    genotype: Genotype
    probabilities: Mapping[str, Tensor]
    undecided: int | None
    seconds: float


def search_genotype(config: Config, world: World) -> Found:
    """Run the search of a config to the end."""
    started = time.process_time()
    data = build_search_data(config, world, *prepare_data(config, world))
    task = build_search(config, data, world)
    _run(task, config)
    probabilities = task.relaxation.probabilities(task.state.alphas)
    learned = task.relaxation.learns_alphas
    undecided = sum(task.state.progress.undecided.values()) if learned else None
    return Found(task.genotype(), probabilities, undecided, time.process_time() - started)


def _run(task: Task, config: Config) -> None:
    run_epochs(task, config, lambda is_best: None, NullReport(), StopSignal())  # noqa: ARG005
