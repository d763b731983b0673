"""The report of a training, which adds the size of the network."""

from __future__ import annotations

from typing import Any

from autoreid.config import Config
from autoreid.models import count_macs, count_parameters
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.run_report import RunReport
from autoreid.training.task import TrainTask


class TrainReport(RunReport):
    """The report of a training on rank 0."""

    def __init__(self, config: Config, folder: RunFolder, task: TrainTask) -> None:
        self.network = task.state.network
        self.start = task.start
        super().__init__(config, folder, task.state, config.data.batch_size)

    def environment(self) -> dict[str, Any]:
        """Return what environment.json contains, with the initial weights that were loaded."""
        return super().environment() | {"weights": None if self.start is None else self.start.as_plain()}

    def result(self) -> dict[str, Any]:
        """Return the content of result.json, with the network's name, parameters without the classifier, and MACs."""
        size = {
            "network": self.config.model.name,
            "parameters": count_parameters(self.network),
            "macs": count_macs(self.network, self.config.data.height, self.config.data.width),
        }
        return size | super().result()
