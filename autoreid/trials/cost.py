"""Estimate how long searches and trials take, from one timed step of each."""

from __future__ import annotations

import time

from autoreid.config import Config
from autoreid.data.training_data import build_search_data, build_training_data, prepare_data
from autoreid.distributed import StopSignal, World
from autoreid.search.build import build_search
from autoreid.search.task import SearchTask
from autoreid.training.task import TrainTask, build_training
from autoreid.trials.trial import Trial


def search_seconds(config: Config, world: World) -> float:
    """Estimate how long the steps of a search take; synthetic people that do not exist are generated first.

    Raises:
        ConfigError, DataError: errors that the search would raise at its start.
    """
    task = build_search(config, build_search_data(config, world, *prepare_data(config, world)), world)
    warmup, epochs = config.search.warmup_epochs, config.training.epochs
    seconds = _step_seconds(task) * warmup if warmup else 0.0
    # The alphas learn in the epochs after the warm-up.
    task.state.epoch = warmup
    seconds += _step_seconds(task) * (epochs - warmup)
    return seconds * task.state.steps_per_epoch


def trial_seconds(trial: Trial, world: World) -> float:
    """Estimate how long the steps of a trial take.

    Raises:
        ConfigError, DataError: errors that the trial would raise at its start.
    """
    config = trial.config
    data = build_training_data(config, world, *prepare_data(config, world))
    task = build_training(config, data, world)
    return _step_seconds(task) * task.state.steps_per_epoch * config.training.epochs


def _step_seconds(task: SearchTask | TrainTask) -> float:
    """Return how long the second step takes; the first one may allocate, compile or capture."""
    stop = StopSignal()
    started = 0.0
    for _ in range(2):
        started = time.monotonic()
        _, metrics = task.step(stop)
        metrics.tolist()  # waits for the device
    return time.monotonic() - started
