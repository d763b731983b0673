"""The report of a run: progress bar, log, TensorBoard, metrics and result."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any

from torch import Tensor
from torchvision.utils import make_grid

from autoreid.config import Config
from autoreid.data.transforms import denormalise
from autoreid.evaluation import MeanRetrieval, RetrievalResult
from autoreid.reporting.board import Board
from autoreid.reporting.environment import describe_environment
from autoreid.reporting.logs import PeriodicLine, progress_bar
from autoreid.reporting.run_folder import RunFolder
from autoreid.training.loop import EpochResult
from autoreid.training.state import RunState

_log = logging.getLogger(__name__)


class NullReport:
    """A report that does nothing, for all ranks but rank 0."""

    def __enter__(self) -> NullReport:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start_epoch(self) -> None:
        """Do nothing."""

    def step(self, metrics: Tensor, learning_rate: float) -> None:
        """Do nothing."""

    def end_epoch(self, result: EpochResult) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


class RunReport:
    """The report of rank 0. Records of steps after the state's step, from an earlier start of the run, are removed.

    Args:
        images_per_step: number of training images per step, over all ranks.
    """

    def __init__(self, config: Config, folder: RunFolder, state: RunState, images_per_step: int) -> None:
        self.config = config
        self.folder = folder
        self.state = state
        self.images_per_step = images_per_step
        folder.truncate_metrics(state.step)
        folder.write_environment(describe_environment() | self.environment())
        self.board = Board(folder.tensorboard, state.step)
        if state.step == 0:
            self._show_start()

    def environment(self) -> dict[str, Any]:
        """Return what environment.json contains besides versions and devices."""
        return {"restarts": self.state.restarts}

    def _show_start(self) -> None:
        self.board.text("config", f"```yaml\n{self.config.to_yaml()}```")
        images = denormalise(self.state.stream.preview().images[:64])
        sheet = make_grid(images, nrow=2 * self.config.data.images_per_identity, pad_value=255)
        self.board.picture("training images", sheet.permute(1, 2, 0).numpy(), 0)
        self.board.flush()

    def __enter__(self) -> RunReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.board.close()

    def start_epoch(self) -> None:
        """Start the progress bar and the clock of the progress lines."""
        steps, done = self.state.steps_per_epoch, self.state.step_in_epoch
        self.name = f"epoch {self.state.epoch + 1}/{self.config.training.epochs}"
        self.bar = progress_bar(steps, done, self.name, enabled=True)
        self.line = PeriodicLine(steps, done, self.config.reporting.every_seconds)
        self.started = (self.state.step, self.state.seconds, self.state.waited)
        self._show_progress()

    def step(self, metrics: Tensor, learning_rate: float) -> None:
        """Update the progress bar, and at intervals log a line and add a point to each curve.

        Args:
            metrics: metrics of the step on rank 0, for its share of the batch.
            learning_rate: learning rate of the weights.
        """

        def values() -> dict[str, float]:
            return dict(zip(self.state.metric_names, metrics.tolist(), strict=True))

        if self.line.update(self.name, self.state.step_in_epoch, self.images_per_step, values):
            self._show_progress()
        if self.state.step % self.config.reporting.every_steps == 0:
            self.bar.set_postfix_str(f"loss {values()['loss']:.3f}", refresh=False)
            curves = {f"step/{name}": value for name, value in values().items()}
            curves |= {f"step/{name}": rate for name, rate in self.learning_rates(learning_rate).items()}
            curves["step/images_per_second"] = self._speed()
            self.board.scalars(curves, self.state.step)
        self.bar.update()

    def learning_rates(self, weights: float) -> dict[str, float]:
        """Return the learning rates by name."""
        return {"weight_learning_rate": weights}

    def _speed(self) -> float:
        """Return the training images per second since the epoch was started or resumed."""
        step, seconds, _ = self.started
        return (self.state.step - step) * self.images_per_step / max(self.state.seconds - seconds, 1e-9)

    def _data_wait(self) -> float:
        """Return the share of time spent waiting for batches since the epoch was started or resumed."""
        _, seconds, waited = self.started
        return (self.state.waited - waited) / max(self.state.seconds - seconds, 1e-9)

    def _show_progress(self) -> None:
        state, epochs = self.state, self.config.training.epochs
        steps = epochs * state.steps_per_epoch
        speed = state.step * self.images_per_step / max(state.seconds, 1e-9)
        self.folder.write_progress(
            {
                "updated": time.time(),
                "task": self.config.task,
                "epoch": state.epoch,
                "epochs": epochs,
                "step": state.step,
                "steps": steps,
                "map": (state.retrieval or {}).get("map"),
                "images_per_second": speed or None,
                "seconds_left": (steps - state.step) * self.images_per_step / speed if speed else None,
            }
        )

    def end_epoch(self, result: EpochResult) -> None:
        """Write the results of the epoch to the log, metrics.jsonl and TensorBoard."""
        self.bar.close()
        values = result.metrics | {"images_per_second": self._speed(), "data_wait": self._data_wait()}
        of_targets: dict[str, float] = {}
        if result.retrieval is not None:
            values |= _metrics(result.retrieval)
            if len(result.retrieval.targets) > 1:
                of_targets = {
                    f"retrieval/{figure}/{target}": value
                    for target, found in result.retrieval.targets.items()
                    for figure, value in _metrics(found).items()
                }
        curves = {f"epoch/{name}": value for name, value in values.items()} | of_targets
        self.board.scalars(curves, self.state.step)
        self.folder.append_metrics({"epoch": result.epoch, "step": self.state.step, **values, **of_targets})
        self.board.flush()
        self._show_progress()
        wait = 100 * values["data_wait"]
        _log.info("%s: %s, %.1f %% of the time waiting for data", self.name, summarise(result), wait)

    def finish(self) -> None:
        """Write result.json, and log its path and the command that starts TensorBoard."""
        self.folder.write_result(self.result())
        _log.info("result: %s", self.folder.result)
        _log.info(
            "TensorBoard: tensorboard --samples_per_plugin images=1000 --logdir %s",
            self.folder.root.parent,
        )

    def result(self) -> dict[str, Any]:
        """Return the content of result.json."""
        state = self.state
        retrieval = state.retrieval or {}
        of_targets = {key: retrieval[key] for key in ("targets",) if key in retrieval}
        return {
            "map": retrieval.get("map"),
            "cmc": retrieval.get("cmc"),
            **of_targets,
            "best_map": state.best_map,
            "epochs": state.epoch,
            "steps": state.step,
            "images_per_second": state.step * self.images_per_step / max(state.seconds, 1e-9),
            "seconds": state.seconds,
            "restarts": state.restarts,
        }


def _metrics(result: RetrievalResult | MeanRetrieval) -> dict[str, float]:
    rates = {f"rank{rank}": rate for rank, rate in result.cmc.items()}
    return {"map": result.map, "minp": result.minp, **rates}


def summarise(result: EpochResult) -> str:
    """Return the results of an epoch as a line of text."""
    metrics = result.metrics
    text = f"loss {metrics['loss']:.3f}, accuracy {100 * metrics['accuracy']:.1f} %"
    if result.retrieval is not None:
        text += f", mAP {100 * result.retrieval.map:.1f} %, rank-1 {100 * result.retrieval.cmc[1]:.1f} %"
        text += " (best)" if result.is_best else ""
        if len(result.retrieval.targets) > 1:
            each = [f"{name} {100 * found.map:.1f}" for name, found in result.retrieval.targets.items()]
            text += f", mAP by target: {', '.join(each)}"
    signs = {"entropy": "{:.3f}", "undecided": "{:.0%}"}
    for sign, form in signs.items():
        values = {name.split("/")[0]: value for name, value in metrics.items() if name.endswith(f"/{sign}")}
        if values:
            each = [f"{group} {form.format(value)}" for group, value in values.items()]
            text += f", {sign} {', '.join(each)}"
    return text
