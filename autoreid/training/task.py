"""The training of a fixed network: a baseline, or the network that was derived from a search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoreid.config import Config
from autoreid.data.loaders import Batch
from autoreid.data.training_data import TrainingData
from autoreid.distributed import StopSignal, World, averaging, check_stop
from autoreid.errors import ConfigError
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.layers.heads import use_cosines
from autoreid.losses import LossValues, build_loss
from autoreid.models import LastMap, LoadReport, check_input_size, output_sizes
from autoreid.models.network import Network
from autoreid.seeding import derive_seed
from autoreid.spaces.build import build_model
from autoreid.spaces.inheritance import load_start
from autoreid.training.accumulation import Accumulation
from autoreid.training.build import (
    build_accumulation,
    build_optimizer,
    memory_format,
    place_network,
    warn_of_unused,
)
from autoreid.training.loop import EpochResult, close_epoch
from autoreid.training.measure import is_due, measure_network
from autoreid.training.precision import PassPrecision
from autoreid.training.schedules import learning_rate
from autoreid.training.state import RunState
from autoreid.training.steps import average_and_agree_on_step, end_step, step_weights


@dataclass(kw_only=True)
class TrainState(RunState):
    """The state of a training.

    Attributes:
        ema: the moving average of the network, if the config asks for it.
    """

    PARTS: ClassVar[tuple[str, ...]] = (*RunState.PARTS, "ema")

    network: Network
    ema: AveragedModel | None = None

    @property
    def measured(self) -> nn.Module:
        """The network to measure: the moving average if there is one, or else the network itself."""
        return self.network if self.ema is None else self.ema.module


@dataclass(frozen=True)
class TrainTask:
    """A training: its state, and everything that its steps need.

    Attributes:
        network: the module for training passes, as returned by `place_network`: compiled, captured or wrapped in DDP.
            `state.network` is the network itself.
        last_map: keeps the last feature map of each pass; None if no term of the loss needs it.
        start: which initial weights were loaded from a file; None if the config names no file.
    """

    config: Config
    world: World
    data: TrainingData
    state: TrainState
    precision: PassPrecision
    accumulation: Accumulation
    network: nn.Module
    last_map: LastMap | None
    start: LoadReport | None

    def learning_rate(self) -> float:
        """Return the learning rate of the head in the next step."""
        return learning_rate(self.config.training, self.state.step, self.state.steps_per_epoch)

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """Perform one step of the weights."""
        training, state = self.config.training, self.state
        batch = next(state.stream).to(self.world.device, memory_format(training))
        state.set_learning_rate(self.learning_rate())
        frozen = state.epoch < training.frozen_epochs
        self._set_mode(frozen)
        metrics, embeddings = self._backward(self.network, batch)
        state.loss.update(embeddings, batch.labels)
        # DDP averages the gradients of the network only.
        weights = list(state.loss.parameters())
        own = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        averages, agreement = average_and_agree_on_step(own, (batch,), stop)
        for weight, average in zip(weights, averages, strict=True):
            weight.grad = average
        norms = step_weights(state, training.gradient_clip, frozen)
        if state.ema is not None:
            state.ema.update_parameters(state.network)
        stopping = end_step(state.step, agreement, norms)
        state.count(metrics)
        return stopping, metrics

    def dry_run(self, batches: Iterator[Batch]) -> None:
        """Compute the gradients of a step without DDP and without changing any state."""
        self._set_mode(frozen=False)
        with frozen_statistics(self.state.network):
            self._backward(self.state.network, next(batches))
        self.state.weight_optimizer.zero_grad()

    def _backward(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the weights; returns the metrics and the embeddings (B, D)."""
        self.state.weight_optimizer.zero_grad()
        metrics, embeddings, count = [], [], self.accumulation.count
        with self.precision.backends():
            for number, micro_batch in enumerate(self.accumulation.micro_batches(batch), start=1):
                with averaging(network, now=number == count):
                    values = self._forward(network, micro_batch)
                    (values.total / count).backward()
                metrics.append(values.metrics())
                embeddings.append(values.embeddings)
                del values  # and with it the graph, before the next one is built
        return torch.stack(metrics).mean(0), self.accumulation.join(embeddings)

    def _forward(self, network: nn.Module, batch: Batch) -> LossValues:
        with self.precision.autocast():
            outputs = network(batch.images)
        feature_map = None if self.last_map is None else self.last_map.take()
        values: LossValues = self.state.loss(outputs, batch.labels, feature_map)
        return values

    def _set_mode(self, frozen: bool) -> None:
        """Set training mode. A frozen backbone is in evaluation mode, which keeps its running statistics fixed."""
        network = self.state.network
        network.train()
        network.set_epoch(self.state.epoch, self.config.training.epochs)
        if frozen:
            head = network.head()
            for child in network.children():
                child.train(child in head)

    def end_epoch(self, stop: StopSignal) -> EpochResult:
        """Count the epoch, and measure the network or its moving average if that is due.

        Raises:
            Interrupted: a stop signal has arrived on any rank; the state is not consistent.
        """
        config, state = self.config, self.state
        metrics = close_epoch(state, config.training.epochs)
        retrieval, is_best = None, False
        if is_due(state, config.evaluation.every_epochs):
            check_stop(stop)
            retrieval = measure_network(config, state.measured, self.data, self.world)
            is_best = state.record(retrieval)
        return EpochResult(state.epoch, metrics, retrieval, is_best)


def build_training(config: Config, data: TrainingData, world: World) -> TrainTask:
    """Build a training. All ranks get the same initial weights, which depend on the seed.

    Raises:
        ConfigError: a network, option or loss term does not exist, or a setting is not supported on this device.
        DataError: the initial weights cannot be loaded.
    """
    warn_of_unused("training", config.training)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    model = build_model(config.model.name, data.num_identities, **config.model.options)
    if config.losses.softmax != "linear":
        use_cosines(model)
    check_input_size(model, config.data.height, config.data.width)
    start = None if config.model.weights is None else load_start(model, config.model.weights)
    loss = build_loss(config.losses, model.has_auxiliary)
    sizes = output_sizes(model, config.data.height, config.data.width)
    if loss.needs_map and sizes.map_channels is None:
        raise ConfigError(
            f"model.name: {config.model.name} names no last feature map, which losses.terms need"
        )
    loss.prepare(sizes, data.stream.labels).to(world.device)
    if loss.comparing and config.data.images_per_identity < 2:
        raise ConfigError(
            f"data.images_per_identity: 1 leaves no positives to losses.terms {loss.comparing[0]}, which compares "
            f"images of an identity; use 2 or more, or a loss with proxies or a classifier"
        )
    network = place_network(model, config, world)
    decay = config.training.ema_decay
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay is not None else None
    state = TrainState(
        network=model,
        weight_optimizer=build_optimizer(config.training, model, loss),
        stream=data.stream,
        loss=loss,
        totals=torch.zeros(len(loss.metric_names), device=world.device),
        ema=ema,
    )
    return TrainTask(
        config,
        world,
        data,
        state,
        PassPrecision(config.training.precision, world.device),
        build_accumulation(config, world),
        network,
        LastMap(model) if loss.needs_map else None,
        start,
    )
