"""The loop of every run, search or training: epochs of steps, from any step on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from autoreid.config import Config
from autoreid.data.loaders import Batch
from autoreid.distributed import StopSignal, average_and_agree
from autoreid.evaluation import MeanRetrieval
from autoreid.training.state import METRICS, RunState


@dataclass(frozen=True)
class EpochResult:
    """What an epoch came to.

    Attributes:
        epoch: counted from 1.
        metrics: means over the epoch's steps and ranks, and what the task adds.
        retrieval: on the targets; None if this epoch was not measured.
        is_best: whether the retrieval was the best so far.
    """

    epoch: int
    metrics: dict[str, float]
    retrieval: MeanRetrieval | None
    is_best: bool


class Task(Protocol):
    """What is done at each step and after each epoch; all ranks do it together."""

    @property
    def state(self) -> RunState:
        """All that changes."""

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """One step; says whether any rank has received a stop signal, and this rank's METRICS."""

    def rehearse(self, batches: Iterator[Batch]) -> None:
        """Dry run: computes the gradients of a step on this process alone. No state changes."""

    def learning_rate(self) -> float:
        """Of the weights, at the state's step."""

    def end_epoch(self) -> EpochResult:
        """Closes the epoch whose last step is done, measures it, and says if the run is finished."""


class Report(Protocol):
    """Callbacks of the loop."""

    def start_epoch(self) -> None:
        """An epoch begins, or goes on in its middle."""

    def step(self, metrics: Tensor, learning_rate: float) -> None:
        """A step was done, with this rank's METRICS."""

    def end_epoch(self, result: EpochResult) -> None:
        """An epoch ended."""


def run_epochs(
    task: Task, config: Config, save: Callable[[bool], None], report: Report, stop: StopSignal
) -> bool:
    """Runs a task to its end, or to the step boundary after a stop signal.

    Args:
        save: writes a checkpoint of the task's state, told whether it is the best; all ranks call it.

    Returns:
        Whether the task came to its end; if not, it is saved where it stopped.

    Raises:
        DataError: an image could not be read.
        RunError: a gradient is not finite; names step and parameter.
        DisagreementError: the ranks hold different alphas.
    """
    state = task.state
    while not state.finished:
        report.start_epoch()
        while state.step_in_epoch < state.steps_per_epoch:
            started = time.monotonic()
            learning_rate = task.learning_rate()
            stopping, metrics = task.step(stop)
            state.seconds += time.monotonic() - started
            report.step(metrics, learning_rate)
            # Also before an epoch is measured, which may take longer than a job is given to stop.
            epoch_ends = state.step_in_epoch == state.steps_per_epoch
            if stopping or epoch_ends or state.step % config.checkpoint.every_steps == 0:
                # Rank 0's file speaks for all: from here on every rank counts from their mean.
                (state.totals,), _ = average_and_agree([state.totals])
                save(False)
            if stopping:
                return False
        result = task.end_epoch()
        # Reported before it is saved: a run killed in between reports the epoch again rather than never.
        report.end_epoch(result)
        save(result.is_best)
    return True


def close_epoch(state: RunState, epochs: int) -> dict[str, float]:
    """Counts an epoch whose last step is done; its METRICS, averaged over steps and ranks."""
    (totals,), _ = average_and_agree([state.totals])
    means = (totals / state.steps_per_epoch).tolist()
    state.totals.zero_()
    state.epoch += 1
    state.finished = state.epoch == epochs
    return dict(zip(METRICS, means, strict=True))


def measure_epoch(
    state: RunState, every_epochs: int, measure: Callable[[], MeanRetrieval]
) -> tuple[MeanRetrieval | None, bool]:
    """Measures retrieval after every so many epochs and after the last.

    Returns:
        The retrieval, None if it was not the time, and whether it is the best so far.
    """
    if not state.finished and state.epoch % every_epochs:
        return None, False
    retrieval = measure()
    state.retrieval = retrieval.as_plain()
    is_best = retrieval.map > state.best_map
    state.best_map = max(state.best_map, retrieval.map)
    return retrieval, is_best
