"""All that changes during a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoreid.data.loaders import BatchStream

#: What is averaged over the steps of an epoch.
METRICS = ("loss", "classification", "triplet", "accuracy")

_NUMBERS = ("step", "epoch", "finished", "best_map", "retrieval", "seconds", "restarts")


@dataclass(kw_only=True)
class RunState:
    """What `state_dict` holds is what resumes.

    Attributes:
        network: the weights, without DDP's wrapper.
        stream: batches that train the weights; a pass over it is an epoch.
        step: steps done.
        epoch: epochs done.
        finished: whether the last epoch is over, or the run ended itself.
        best_map: the best mAP measured so far.
        retrieval: the last measured, as MeanRetrieval.as_plain gives it.
        seconds: spent on steps, over all restarts.
        restarts: how often the run was resumed.
        totals: sums of METRICS over the current epoch's steps.
    """

    #: Attributes that have a state of their own, unless they are None.
    PARTS: ClassVar[tuple[str, ...]] = ("network", "weight_optimizer", "stream")

    network: nn.Module
    weight_optimizer: torch.optim.Optimizer
    stream: BatchStream
    totals: Tensor = field(default_factory=lambda: torch.zeros(len(METRICS)))
    step: int = 0
    epoch: int = 0
    finished: bool = False
    best_map: float = -1.0
    retrieval: dict[str, Any] | None = None
    seconds: float = 0.0
    restarts: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """An epoch is one pass over the images that train the weights."""
        return self.stream.batches_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Steps done in the current epoch."""
        return self.step - self.epoch * self.steps_per_epoch

    @property
    def waited(self) -> float:
        """Seconds that this start's steps have waited for batches."""
        return sum(part.waited for _, part in self._parts() if isinstance(part, BatchStream))

    def set_learning_rate(self, rate: float) -> None:
        """Gives each group of the optimiser its share of the weights' learning rate."""
        for group in self.weight_optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def count(self, metrics: Tensor) -> None:
        """Counts a step with this rank's METRICS."""
        self.totals += metrics
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: weights, optimisers, positions, numbers, random state."""
        parts = {name: part.state_dict() for name, part in self._parts()}
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        cuda = torch.cuda.get_rng_state() if self._on_gpu else None
        return parts | numbers | {"totals": self.totals.cpu(), "random": [torch.get_rng_state(), cuda]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken; learning rates follow from the step."""
        for name, part in self._parts():
            part.load_state_dict(state[name])
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.totals = state["totals"].to(self.totals.device)
        cpu, cuda = state["random"]
        torch.set_rng_state(cpu)
        if cuda is not None and self._on_gpu:
            torch.cuda.set_rng_state(cuda)

    @property
    def _on_gpu(self) -> bool:
        """A run on CPUs does not touch a GPU that happens to be there: asking for its random state would open it."""
        return self.totals.device.type == "cuda"

    def _parts(self) -> list[tuple[str, Any]]:
        found = ((name, getattr(self, name)) for name in self.PARTS)
        return [(name, part) for name, part in found if part is not None]
