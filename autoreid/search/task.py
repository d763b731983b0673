"""The step of a search: alphas and weights in turn, each on its own images (DARTS, arXiv 1806.09055), or together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoreid.config import Config
from autoreid.data.loaders import Batch, BatchStream
from autoreid.data.training_data import TrainingData
from autoreid.distributed import StopSignal, World, averaging, check_agreement
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.losses import LossValues, RetrievalLoss
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.collapse import search_signs
from autoreid.search.domains import domain_gains
from autoreid.search.relaxations import Relaxation
from autoreid.search.schedules import alpha_learning_rate
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import Space
from autoreid.training.accumulation import Accumulation
from autoreid.training.build import memory_format
from autoreid.training.loop import EpochResult, close_epoch
from autoreid.training.measure import is_due, measure_network
from autoreid.training.precision import PassPrecision
from autoreid.training.schedules import learning_rate
from autoreid.training.state import RunState
from autoreid.training.steps import (
    Agreement,
    Norms,
    average_and_agree_on_step,
    end_step,
    norms_of,
    step_weights,
)


@dataclass(kw_only=True)
class SearchState(RunState):
    """The state of a search.

    Attributes:
        alphas: the architecture parameters.
        alpha_optimizer: their optimiser.
        alpha_stream: batches for the alphas; None if they learn from the weights' batches.
        alphas_before: the alphas at the start of the epoch; None unless an epoch leaves a domain out.
    """

    PARTS: ClassVar[tuple[str, ...]] = (
        *RunState.PARTS,
        "alphas",
        "alpha_optimizer",
        "alpha_stream",
        "alphas_before",
    )

    alphas: Alphas
    alpha_optimizer: torch.optim.Optimizer
    alpha_stream: BatchStream | None
    alphas_before: Alphas | None = None


@dataclass(frozen=True)
class SearchResult(EpochResult):
    """The result of an epoch of a search.

    Attributes:
        genotype: read from the alphas.
        probabilities: of each candidate, (E, O) for each group.
    """

    genotype: Genotype
    probabilities: dict[str, Tensor]


@dataclass(frozen=True)
class SearchTask:
    """A search: its state, and what its steps need.

    Attributes:
        network: the supernet for passes that train the weights: compiled, captured or under DDP where asked for.
            `state.network` is the supernet itself.
    """

    config: Config
    world: World
    data: TrainingData
    state: SearchState
    space: Space
    relaxation: Relaxation
    architect: Architect
    loss: RetrievalLoss
    precision: PassPrecision
    accumulation: Accumulation
    network: nn.Module

    def learning_rate(self) -> float:
        """Returns the learning rate of the weights in the next step."""
        return learning_rate(self.config.training, self.state.step, self.state.steps_per_epoch)

    def alpha_learning_rate(self) -> float:
        """Returns the learning rate of the alphas in the next step."""
        config, state = self.config, self.state
        return alpha_learning_rate(config.search, config.training, state.step, state.steps_per_epoch)

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """Performs one step of the alphas and one of the weights."""
        state = self.state
        self._set_learning_rates()
        weight_batch = self._next(state.stream)
        if state.alpha_stream is None:
            agreement, metrics, norms = self._step_together(weight_batch, stop)
        else:
            alpha_batch = self._next(state.alpha_stream)
            own: list[Tensor] = []
            if self._alphas_learn():
                own = self.architect.gradients(alpha_batch, weight_batch, state.step)
            gradients, agreement = average_and_agree_on_step(own, (weight_batch, alpha_batch), stop)
            norms = self._step_alphas(gradients)
            metrics = self._backward(self.network, weight_batch, alphas_learn=False)
        norms.append(step_weights(state, self.config.training.gradient_clip))
        stopping = end_step(state.step, agreement, *norms)
        state.count(metrics)
        if state.step % self.config.distributed.digest_every_steps == 0:
            check_agreement("alphas", state.alphas.digest(), state.step)
        return stopping, metrics

    def _step_together(self, batch: Batch, stop: StopSignal) -> tuple[Agreement, Tensor, list[Norms]]:
        """Alphas and weights take their gradients from one backward pass on the same images."""
        state = self.state
        state.alpha_optimizer.zero_grad()
        metrics = self._backward(self.network, batch, self._alphas_learn())
        own = [alpha.grad for alpha in state.alphas.parameters() if alpha.grad is not None]
        gradients, agreement = average_and_agree_on_step(own, (batch,), stop)
        return agreement, metrics, self._step_alphas(gradients)

    def dry_run(self, batches: Iterator[Batch]) -> None:
        """Computes the gradients of a step without DDP. No state changes."""
        state, weight_batch = self.state, next(batches)
        # Both batches are in memory before either is used, as in a step.
        alpha_batch = None if state.alpha_stream is None else next(batches)
        # The weights first: in a run, their last gradient is still in memory when the alphas' gradient is computed.
        with frozen_statistics(state.network):
            self._backward(state.network, weight_batch, alphas_learn=alpha_batch is None)
            if alpha_batch is not None:
                self.architect.gradients(alpha_batch, weight_batch, state.step)
        state.weight_optimizer.zero_grad()
        state.alpha_optimizer.zero_grad()

    def _backward(self, network: nn.Module, batch: Batch, alphas_learn: bool) -> Tensor:
        """Computes the gradient of the weights, and of the alphas if they learn from it; returns the metrics."""
        self.state.weight_optimizer.zero_grad()
        metrics, count = [], self.accumulation.count
        with self.precision.backends():
            for number, micro_batch in enumerate(self.accumulation.micro_batches(batch), start=1):
                with averaging(network, now=number == count):
                    values = self._forward(network, micro_batch, alphas_learn)
                    (values.total / count).backward()
                metrics.append(values.metrics())
                del values  # and with it the graph, before the next one is built
        return torch.stack(metrics).mean(0)

    def _forward(self, network: nn.Module, batch: Batch, alphas_learn: bool) -> LossValues:
        alphas, step = self.state.alphas, self.state.step
        sample = None if alphas_learn else self.relaxation.sample(alphas, step, "weights")
        if sample is None:
            with torch.set_grad_enabled(alphas_learn):
                mixing = self.relaxation.mixture(alphas, step, "weights")
            with self.precision.autocast():
                outputs = network(batch.images, mixing)
        else:
            with self.precision.autocast():
                outputs = network(batch.images, sample=sample)
        values: LossValues = self.loss(outputs, batch.labels)
        return values

    def _next(self, stream: BatchStream) -> Batch:
        return next(stream).to(self.world.device, memory_format(self.config.training))

    def _alphas_learn(self) -> bool:
        return self.state.epoch >= self.config.search.warmup_epochs

    def _set_learning_rates(self) -> None:
        self.state.set_learning_rate(self.learning_rate())
        for group in self.state.alpha_optimizer.param_groups:
            group["lr"] = self.alpha_learning_rate()

    def _step_alphas(self, gradients: Sequence[Tensor]) -> list[Norms]:
        """Performs a step with averaged gradients and returns their norms. Without gradients it does nothing."""
        if not gradients:
            return []
        state = self.state
        names = []
        for (name, alpha), gradient in zip(state.alphas.named_parameters(), gradients, strict=True):
            names.append(f"alphas.{name}")
            alpha.grad = gradient
        state.alpha_optimizer.step()
        return [norms_of(names, gradients)]

    def genotype(self) -> Genotype:
        """Reads the genotype from the alphas."""
        return self.space.genotype(self.relaxation.probabilities(self.state.alphas))

    def _domain_gains(self, before: Alphas) -> dict[str, float]:
        """Measures what the closed epoch has gained on two domains, and starts the next one."""
        config, state = self.config, self.state
        assert state.alpha_stream is not None  # noqa: S101
        gains: dict[str, float] = {}
        if state.epoch > config.search.warmup_epochs:
            gains = domain_gains(
                self.architect,
                before,
                state.alpha_stream,
                state.step,
                len(config.data.sources),
                memory_format(config.training),
            )
        before.load_state_dict(state.alphas.state_dict())
        return gains

    def end_epoch(self) -> SearchResult:
        """Closes the epoch, reads the genotype, checks for collapse and measures retrieval if it is due."""
        config, state = self.config, self.state
        metrics = close_epoch(state, config.training.epochs)
        genotype = self.genotype()
        state.finished |= self.space.has_collapsed(genotype)
        retrieval, is_best = None, False
        if is_due(state, config.evaluation.every_epochs):
            inputs = self.relaxation.evaluation(state.alphas)
            retrieval = measure_network(config, state.network, self.data, self.world, inputs)
            is_best = state.record(retrieval)
        probabilities = self.relaxation.probabilities(state.alphas)
        on_cpu = {name: values.cpu() for name, values in probabilities.items()}
        metrics |= search_signs(on_cpu, self.space.choices(), self.space.watched())
        if state.alphas_before is not None:
            metrics |= self._domain_gains(state.alphas_before)
        return SearchResult(state.epoch, metrics, retrieval, is_best, genotype, on_cpu)
