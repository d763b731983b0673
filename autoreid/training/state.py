"""The state of a run: everything that a checkpoint saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoreid.data.loaders import BatchStream
from autoreid.evaluation import MeanRetrieval
from autoreid.losses import RetrievalLoss

#: Names of the totals in checkpoints that do not name them.
_UNNAMED_TOTALS = ("loss", "classification", "triplet", "accuracy")
_NUMBERS = ("step", "epoch", "finished", "best_map", "retrieval", "seconds", "restarts")


@dataclass(kw_only=True)
class RunState:
    """The state of a run. Resuming needs nothing but what `state_dict` returns.

    Attributes:
        network: the network to train, without DDP's wrapper.
        weight_optimizer: the optimiser of the weights.
        stream: the batches that train the weights. An epoch is one pass over it.
        loss: the loss of the weights.
        totals: sums of the metrics over the steps of the current epoch, (metrics,).
        step: number of completed steps.
        epoch: number of completed epochs.
        finished: whether the run is complete, or has stopped early.
        best_map: the best mAP measured so far.
        retrieval: the most recent retrieval, as returned by `MeanRetrieval.as_plain`.
        seconds: time spent in steps since the run was first started.
        restarts: how often the run has been resumed.
    """

    #: Names of the attributes that are saved by their `state_dict`. An attribute may be None.
    PARTS: ClassVar[tuple[str, ...]] = ("network", "weight_optimizer", "stream", "loss")

    network: nn.Module
    weight_optimizer: torch.optim.Optimizer
    stream: BatchStream
    loss: RetrievalLoss
    totals: Tensor
    step: int = 0
    epoch: int = 0
    finished: bool = False
    best_map: float = -1.0
    retrieval: dict[str, Any] | None = None
    seconds: float = 0.0
    restarts: int = 0

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics of a step."""
        return self.loss.metric_names

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch."""
        return self.stream.batches_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Number of completed steps in the current epoch."""
        return self.step - self.epoch * self.steps_per_epoch

    @property
    def waited(self) -> float:
        """Seconds that steps have spent waiting for batches since this process started."""
        return sum(part.waited for _, part in self._parts() if isinstance(part, BatchStream))

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of each parameter group to `rate` times the group's scale."""
        for group in self.weight_optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def count(self, metrics: Tensor) -> None:
        """Count a completed step, and add this rank's metrics to the totals."""
        self.totals += metrics
        self.step += 1

    def record(self, retrieval: MeanRetrieval) -> bool:
        """Record a retrieval, and return whether its mAP is the best so far."""
        self.retrieval = retrieval.as_plain()
        is_best = retrieval.map > self.best_map
        self.best_map = max(self.best_map, retrieval.map)
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a checkpoint saves, as tensors and plain values."""
        parts = {name: part.state_dict() for name, part in self._parts()}
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        cuda = torch.cuda.get_rng_state() if self._on_gpu else None
        totals = dict(zip(self.metric_names, self.totals.tolist(), strict=True))
        return parts | numbers | {"totals": totals, "random": [torch.get_rng_state(), cuda]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state. Learning rates are not part of it: they are functions of the step."""
        state = {"loss": {}, **state}  # older versions had no terms with a state
        for name, part in self._parts():
            part.load_state_dict(state[name])
        for name in _NUMBERS:
            setattr(self, name, state[name])
        totals = state["totals"]
        if isinstance(totals, Tensor):  # a checkpoint of an older version
            totals = dict(zip(_UNNAMED_TOTALS, totals.tolist(), strict=True))
        self.totals.copy_(torch.tensor([totals.get(name, 0.0) for name in self.metric_names]))
        cpu, cuda = state["random"]
        torch.set_rng_state(cpu)
        if cuda is not None and self._on_gpu:
            torch.cuda.set_rng_state(cuda)

    @property
    def _on_gpu(self) -> bool:
        """Whether the run uses a GPU. Otherwise CUDA's random state must not be read: that would initialise CUDA."""
        return self.totals.device.type == "cuda"

    def _parts(self) -> list[tuple[str, Any]]:
        found = ((name, getattr(self, name)) for name in self.PARTS)
        return [(name, part) for name, part in found if part is not None]
