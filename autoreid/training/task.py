"""Training a fixed network: baselines and what a search found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoreid.config import Config
from autoreid.data.loaders import Batch
from autoreid.data.training_data import TrainingData
from autoreid.distributed import StopSignal, World
from autoreid.evaluation import MeanRetrieval
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.models import check_input_size
from autoreid.seeding import derive_seed
from autoreid.spaces import build_model
from autoreid.spaces.inheritance import load_start
from autoreid.training.accumulation import Accumulation
from autoreid.training.build import (
    HEADS,
    build_accumulation,
    build_objective,
    build_optimizer,
    measure_network,
    memory_format,
    place_network,
)
from autoreid.training.loop import EpochResult, close_epoch, measure_epoch
from autoreid.training.objective import Objective
from autoreid.training.schedules import learning_rate
from autoreid.training.state import METRICS, RunState
from autoreid.training.steps import average_and_agree_on_step, end_step, step_weights


@dataclass(kw_only=True)
class TrainState(RunState):
    """All that changes during a training.

    Attributes:
        ema: the moving average of the network, if one is kept.
    """

    PARTS: ClassVar[tuple[str, ...]] = (*RunState.PARTS, "ema")

    ema: AveragedModel | None = None


@dataclass(frozen=True)
class TrainTask:
    """What a training is made of.

    Attributes:
        network: the state's as it is trained, under DDP where there are ranks.
        measure: embeds and ranks the targets.
    """

    config: Config
    world: World
    state: TrainState
    objective: Objective
    accumulation: Accumulation
    network: nn.Module
    measure: Callable[[], MeanRetrieval]

    def learning_rate(self) -> float:
        """The head's, at the state's step."""
        return learning_rate(self.config.training, self.state.step, self.state.steps_per_epoch)

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """One step of the weights."""
        training, state = self.config.training, self.state
        batch = next(state.stream).to(self.world.device, memory_format(training))
        state.set_learning_rate(self.learning_rate())
        frozen = state.epoch < training.frozen_epochs
        self._set_mode(frozen)
        _, agreement = average_and_agree_on_step((), (batch,), stop)
        metrics = self._backward(self.network, batch)
        norms = step_weights(state, training.gradient_clip, frozen)
        if state.ema is not None:
            state.ema.update_parameters(state.network)
        stopping = end_step(state.step, agreement, norms)
        state.count(metrics)
        return stopping, metrics

    def rehearse(self, batches: Iterator[Batch]) -> None:
        """Dry run: computes the gradients of a step without DDP. No state changes."""
        self._set_mode(frozen=False)
        with frozen_statistics(self.state.network):
            self._backward(self.state.network, next(batches))
        self.state.weight_optimizer.zero_grad()

    def _backward(self, network: nn.Module, batch: Batch) -> Tensor:
        """Gives the weights their gradient; this rank's METRICS."""
        self.state.weight_optimizer.zero_grad()
        with self.objective.passes():
            return self.accumulation.backward(network, partial(self.objective, network), batch)

    def _set_mode(self, frozen: bool) -> None:
        """A frozen backbone keeps its statistics as well; drop-path grows linearly over the epochs (DARTS)."""
        network, training = self.state.network, self.config.training
        network.train()
        if frozen:
            for name, child in network.named_children():
                child.train(name in HEADS)
        drop_path = self.config.model.options.get("drop_path")
        if isinstance(drop_path, float):
            network.drop_path = drop_path * self.state.epoch / training.epochs  # type: ignore[assignment]

    def end_epoch(self) -> EpochResult:
        """Measures the network, or its moving average."""
        metrics = close_epoch(self.state, self.config.training.epochs)
        retrieval, is_best = measure_epoch(self.state, self.config.evaluation.every_epochs, self.measure)
        return EpochResult(self.state.epoch, metrics, retrieval, is_best)


def build_training(config: Config, data: TrainingData, world: World) -> TrainTask:
    """Builds everything that a training is made of; equal seeds give equal weights on every rank.

    Raises:
        ConfigError: the config asks for a network or an option that there is not.
        DataError: the weights to start from cannot be read.
    """
    torch.manual_seed(derive_seed(config.seed, "weights"))
    model = build_model(config.model.name, data.num_identities, **config.model.options)
    check_input_size(model, config.data.height, config.data.width)
    if config.model.weights is not None:
        load_start(model, config.model.weights)
    network = place_network(model, config, world)
    decay = config.training.ema_decay
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay is not None else None
    state = TrainState(
        network=model,
        weight_optimizer=build_optimizer(config.training, model),
        stream=data.stream,
        totals=torch.zeros(len(METRICS), device=world.device),
        ema=ema,
    )
    measured = ema.module if ema is not None else model
    return TrainTask(
        config,
        world,
        state,
        build_objective(config, world, config.training.precision),
        build_accumulation(config, world),
        network,
        lambda: measure_network(config, measured, measured, data, world),
    )
