"""The loop over epochs and steps that searches and trainings share. It can resume at any step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from autoreid.config import Config
from autoreid.data.loaders import Batch
from autoreid.distributed import Interrupted, StopSignal, average_and_agree
from autoreid.evaluation import MeanRetrieval
from autoreid.training.state import RunState


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch.

    Attributes:
        epoch: counted from 1.
        metrics: means over the steps of the epoch and the ranks, and further values of the task.
        retrieval: retrieval on the targets; None if it was not measured after this epoch.
        is_best: whether the retrieval is the best so far.
    """

    epoch: int
    metrics: dict[str, float]
    retrieval: MeanRetrieval | None
    is_best: bool


class Task(Protocol):
    """A search or a training. All ranks call its methods together."""

    @property
    def state(self) -> RunState:
        """The state of the run."""

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """Perform one step.

        Returns:
            Whether any rank has received a stop signal, and this rank's metrics, named by `state.metric_names`.
        """

    def dry_run(self, batches: Iterator[Batch]) -> None:
        """Compute the gradients of a step without DDP and without changing any state."""

    def learning_rate(self) -> float:
        """Return the learning rate of the weights in the next step."""

    def end_epoch(self, stop: StopSignal) -> EpochResult:
        """Count the epoch after its last step, and measure retrieval if it is due.

        Raises:
            Interrupted: a stop signal has arrived on any rank. The state is that of no point of the run.
        """


class Report(Protocol):
    """Callbacks of the loop."""

    def start_epoch(self) -> None:
        """Called when an epoch starts, or is resumed in the middle."""

    def step(self, metrics: Tensor, learning_rate: float) -> None:
        """Called after each step, with this rank's metrics."""

    def end_epoch(self, result: EpochResult) -> None:
        """Called at the end of each epoch."""


def run_epochs(
    task: Task, config: Config, save: Callable[[bool], None], report: Report, stop: StopSignal
) -> bool:
    """Run a task until it is finished, or until the end of the step in which a stop signal arrives.

    Args:
        save: saves a checkpoint of the task's state. Its argument says whether the network is the best so far. All
            ranks call it together.

    Returns:
        Whether the task is finished. If not, its state is saved.

    Raises:
        DataError: an image could not be read.
        DivergedError: a gradient is not finite; the message names the step and the parameter.
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
            # Save before measuring an epoch: measuring may take longer than the job's grace period.
            epoch_ends = state.step_in_epoch == state.steps_per_epoch
            if stopping or epoch_ends or state.step % config.checkpoint.every_steps == 0:
                # The checkpoint holds rank 0's totals only, so all ranks continue with the mean of theirs.
                (state.totals,), _ = average_and_agree([state.totals])
                save(False)
            if stopping:
                return False
        try:
            result = task.end_epoch(stop)
        except Interrupted:
            return False  # The checkpoint of the last step is from before the measurements.
        # Report first: if the run is killed before the save, the epoch is reported twice rather than never.
        report.end_epoch(result)
        save(result.is_best)
    return True


def close_epoch(state: RunState, epochs: int) -> dict[str, float]:
    """Count an epoch after its last step, and return its metrics, averaged over steps and ranks."""
    (totals,), _ = average_and_agree([state.totals])
    means = (totals / state.steps_per_epoch).tolist()
    state.totals.zero_()
    state.epoch += 1
    state.finished = state.epoch == epochs
    return dict(zip(state.metric_names, means, strict=True))
