"""Run trials in this process, one after another, on data that is read once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from autoreid.checkpoint import CheckpointFolder
from autoreid.config import Config
from autoreid.data.images import Images
from autoreid.data.records import ReidDataset
from autoreid.data.training_data import build_training_data, prepare_data
from autoreid.distributed import StopSignal, World, explain_nondeterminism
from autoreid.errors import DivergedError
from autoreid.files import make_folder
from autoreid.models import count_macs, count_parameters
from autoreid.reporting.logs import PeriodicLine, progress_bar
from autoreid.training.loop import EpochResult, run_epochs
from autoreid.training.state import RunState
from autoreid.training.task import TrainTask, build_training
from autoreid.trials.same_data import check_same_data
from autoreid.trials.shared_units import Unit, share_units
from autoreid.trials.trial import Trial
from autoreid.trials.trial_file import TrialFile

_log = logging.getLogger(__name__)


class TrialReport:
    """Shows the progress of a trial: a bar on a terminal, periodic lines in a log."""

    def __init__(self, name: str, config: Config, state: RunState) -> None:
        self.name, self.state = name, state
        self.images = config.data.batch_size
        total = config.training.epochs * state.steps_per_epoch
        self.bar = progress_bar(total, state.step, name, enabled=True)
        self.line = PeriodicLine(total, state.step, config.reporting.every_seconds)

    def __enter__(self) -> TrialReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def start_epoch(self) -> None:
        """Do nothing: the bar is that of the whole trial."""

    def step(self, metrics: Tensor, learning_rate: float) -> None:  # noqa: ARG002
        """Move the bar, and log a line if it is due."""

        def values() -> Mapping[str, float]:
            return dict(zip(self.state.metric_names, metrics.tolist(), strict=True))

        self.line.update(self.name, self.state.step, self.images, values)
        self.bar.update()

    def end_epoch(self, result: EpochResult) -> None:
        """Do nothing: the runner reports the result."""


@dataclass(frozen=True)
class TrialRunner:
    """Runs the trials of a folder.

    Attributes:
        folder: of the tournament or study; several processes may run trials of the same one.
        images: the pixels of every trial.
        datasets: the data sets of every trial.
        wait: wait for trials that other processes are running.
    """

    folder: Path
    world: World
    stop: StopSignal
    images: Images
    datasets: Mapping[str, ReidDataset]
    wait: bool = True

    @classmethod
    def open(
        cls, folder: Path, recipe: Config, world: World, stop: StopSignal, wait: bool = True
    ) -> TrialRunner:
        """Read the data of a recipe; synthetic people that do not exist are generated first.

        Raises:
            DataError: a data set is missing or cannot be read, or the folder has results from other images.
        """
        images, datasets = prepare_data(recipe, world)
        check_same_data(folder, datasets, recipe.data.root)
        return cls(folder, world, stop, images, datasets, wait)

    def run(
        self, trials: Mapping[str, Trial], after_each: Callable[[], None] = lambda: None
    ) -> list[dict[str, Any]] | None:
        """Run the trials that have no result yet.

        Args:
            trials: by name. Equal trials are run once.
            after_each: called after each trial that this process has finished.

        Returns:
            The result of each trial, in order; None if a stop signal has arrived, or other processes are still running
            some of them.

        Raises:
            RunError: a checkpoint or result cannot be written. A training that diverges is a result.
        """
        file = TrialFile(self.folder)
        first: dict[str, tuple[str, Trial]] = {}
        for name, trial in trials.items():
            first.setdefault(trial.key, (name, trial))
        units = [
            self._unit(name, trial, file, f"{place} of {len(first)}", after_each)
            for place, (name, trial) in enumerate(first.values(), start=1)
        ]
        if not share_units(units, self.folder / "locks", self.stop, self.wait):
            return None
        results = file.read()
        return [results[trial.key] for trial in trials.values()]

    def steps_done(self, trials: Iterable[Trial]) -> int:
        """Return the number of steps of trials that need not be done again."""
        results = TrialFile(self.folder).read()
        return sum(
            results[trial.key].get("steps", 0)
            if trial.key in results
            else max(CheckpointFolder(self._checkpoints(trial), keep_last=1).steps(), default=0)
            for trial in trials
        )

    def _unit(
        self, name: str, trial: Trial, file: TrialFile, place: str, after_each: Callable[[], None]
    ) -> Unit:
        key = trial.key

        def work() -> None:
            result = self._train(f"{name} ({place})", trial)
            if result is not None:
                file.append({"key": key, "name": name, **result})
                # Only now: a process that is killed in between measures again instead of training again.
                shutil.rmtree(self._checkpoints(trial), ignore_errors=True)
                _log.info("%s (%s): %s", name, place, in_words(result))
                after_each()

        return Unit(f"trial-{key}", lambda: key in file.read(), work)

    def _checkpoints(self, trial: Trial) -> Path:
        return self.folder / "checkpoints" / trial.key

    def _train(self, name: str, trial: Trial) -> dict[str, Any] | None:
        """Return the result of a trial; None if a stop signal has arrived, and its state is saved."""
        config = trial.config
        data = build_training_data(config, self.world, self.images, self.datasets)
        task = build_training(config, data, self.world)
        checkpoints = CheckpointFolder(self._checkpoints(trial), keep_last=1)
        make_folder(checkpoints.folder, "choose another --output")
        saved = checkpoints.load_latest()
        if saved is not None:
            task.state.load_state_dict(saved)

        def save(is_best: bool) -> None:  # noqa: ARG001
            checkpoints.save(task.state.step, task.state.state_dict(), is_best=False)

        try:
            with TrialReport(name, config, task.state) as report, explain_nondeterminism():
                finished = run_epochs(task, config, save, report, self.stop)
        except DivergedError as error:
            return _result(trial, task) | {"map": None, "rank1": None, "failed": str(error)}
        return _result(trial, task) if finished else None


def _result(trial: Trial, task: TrainTask) -> dict[str, Any]:
    config, state = trial.config, task.state
    retrieval = state.retrieval or {"map": None, "cmc": {}}
    return {
        "map": retrieval["map"],
        "rank1": retrieval["cmc"].get("1"),
        "parameters": count_parameters(state.network),
        "macs": count_macs(state.network, config.data.height, config.data.width),
        "steps": state.step,
        "seconds": state.seconds,
        "seed": config.seed,
        "epochs": config.training.epochs,
        "genotype": trial.genotype.model_dump(mode="json"),
    }


def in_words(result: Mapping[str, Any]) -> str:
    """Return a result as a line."""
    if result["map"] is None:
        return f"failed: {result['failed']}"
    return (
        f"mAP {100 * result['map']:.1f} %, rank-1 {100 * result['rank1']:.1f} %, "
        f"{result['parameters'] / 1e6:.3g} M parameters, {result['seconds']:.0f} s"
    )


def total_seconds(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the time that the trials took, each counted once."""
    return sum({result["key"]: float(result["seconds"]) for result in results}.values())
