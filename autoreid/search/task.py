"""The step of a search: alphas and weights in turn, each on its own images (DARTS, arXiv 1806.09055), or together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autoreid.config import Config
from autoreid.data.loaders import Batch, BatchStream
from autoreid.data.training_data import SearchData
from autoreid.distributed import StopSignal, World, averaging, check_agreement
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.losses import LossValues, RetrievalLoss
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.progress import SearchProgress
from autoreid.search.read_out import by_evolution, by_perturbation
from autoreid.search.relaxations import Relaxation
from autoreid.search.schedules import alpha_learning_rate
from autoreid.search.signs import best_columns, search_signs, undecided
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

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SearchState(RunState):
    """The state of a search.

    Attributes:
        alphas: the architecture parameters.
        alpha_optimizer: their optimiser.
        alpha_stream: batches for the alphas; None if they learn from the weights' batches.
        progress: what the search remembers from epoch to epoch.
    """

    PARTS: ClassVar[tuple[str, ...]] = (
        *RunState.PARTS,
        "alphas",
        "alpha_optimizer",
        "alpha_stream",
        "progress",
    )

    alphas: Alphas
    alpha_optimizer: torch.optim.Optimizer
    alpha_stream: BatchStream | None
    progress: SearchProgress

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; those of older versions have no progress, which is then empty."""
        super().load_state_dict({"progress": self.progress.state_dict(), **state})


@dataclass(frozen=True)
class SearchResult(EpochResult):
    """The result of an epoch of a search.

    Attributes:
        genotype: read from the alphas; after the last epoch, as `search.read_out` says.
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
    data: SearchData
    state: SearchState
    space: Space
    relaxation: Relaxation
    architect: Architect
    loss: RetrievalLoss
    precision: PassPrecision
    accumulation: Accumulation
    network: nn.Module

    def learning_rate(self) -> float:
        """Return the learning rate of the weights in the next step."""
        return learning_rate(self.config.training, self.state.step, self.state.steps_per_epoch)

    def alpha_learning_rate(self) -> float:
        """Return the learning rate of the alphas in the next step."""
        config, state = self.config, self.state
        return alpha_learning_rate(config.search, config.training, state.step, state.steps_per_epoch)

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """Perform one step of the alphas and one of the weights."""
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
        own: list[Tensor] = []
        if self._alphas_learn():
            # A sample may leave alphas without a gradient.
            own = [torch.zeros_like(a) if a.grad is None else a.grad for a in state.alphas.parameters()]
        gradients, agreement = average_and_agree_on_step(own, (batch,), stop)
        return agreement, metrics, self._step_alphas(gradients)

    def dry_run(self, batches: Iterator[Batch]) -> None:
        """Compute the gradients of a step without DDP. No state changes."""
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
        """Compute the gradient of the weights, and of the alphas if they learn from it; returns the metrics."""
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
        inputs = self.relaxation.inputs(self.state.alphas, self.state.step, "weights", alphas_learn)
        with self.precision.autocast():
            outputs = network(batch.images, *inputs)
        values: LossValues = self.loss(outputs, batch.labels)
        return values

    def _next(self, stream: BatchStream) -> Batch:
        return next(stream).to(self.world.device, memory_format(self.config.training))

    def _alphas_learn(self) -> bool:
        return self.relaxation.learns_alphas and self.state.epoch >= self.config.search.warmup_epochs

    def _set_learning_rates(self) -> None:
        self.state.set_learning_rate(self.learning_rate())
        for group in self.state.alpha_optimizer.param_groups:
            group["lr"] = self.alpha_learning_rate()

    def _step_alphas(self, gradients: Sequence[Tensor]) -> list[Norms]:
        """Perform a step with averaged gradients and returns their norms. Without gradients it does nothing."""
        if not gradients:
            return []
        state = self.state
        names = []
        for (name, alpha), gradient in zip(state.alphas.named_parameters(), gradients, strict=True):
            names.append(f"alphas.{name}")
            alpha.grad = gradient
        state.alpha_optimizer.step()
        state.progress.add(gradients)
        return [norms_of(names, gradients)]

    def genotype(self) -> Genotype:
        """Return the genotype that the search has found so far."""
        if self.state.progress.found is not None:
            return self.state.progress.found
        return self.space.genotype(self.relaxation.probabilities(self.state.alphas))

    def end_epoch(self) -> SearchResult:
        """Close the epoch, reads the genotype, checks for collapse and measures retrieval if it is due."""
        config, state = self.config, self.state
        metrics = close_epoch(state, config.training.epochs)
        probabilities = self.relaxation.probabilities(state.alphas)
        on_cpu = {name: values.cpu() for name, values in probabilities.items()}
        metrics |= self._signs(on_cpu)
        self._check_collapse(self.space.genotype(on_cpu))
        retrieval, is_best = None, False
        if is_due(state, config.evaluation.every_epochs):
            inputs = self.relaxation.evaluation(state.alphas)
            retrieval = measure_network(config, state.network, self.data, self.world, inputs)
            is_best = state.record(retrieval)
        if state.finished and state.progress.found is None:
            state.progress.found = self._read_out(probabilities)
        return SearchResult(state.epoch, metrics, retrieval, is_best, self.genotype(), on_cpu)

    def _signs(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        """The signs of the epoch, which the progress keeps."""
        choices, progress = self.space.choices(), self.state.progress
        progress.undecided = undecided(probabilities, choices, progress.leads())
        signs = search_signs(probabilities, choices, self.space.watched(), progress.undecided)
        signs |= progress.gradient_signs()
        signs |= progress.changes(best_columns(probabilities, choices))
        progress.signs = signs
        return signs

    def _check_collapse(self, genotype: Genotype) -> None:
        """Stop the search if trained alphas gave a degenerate genotype in two epochs in a row (DARTS+).

        The last genotype before them is the result.
        """
        state, progress = self.state, self.state.progress
        if state.epoch <= self.config.search.warmup_epochs or not self.relaxation.learns_alphas:
            return
        if not self.space.has_collapsed(genotype):
            progress.collapsed, progress.sound, progress.sound_epoch = False, genotype, state.epoch
            return
        if progress.collapsed:
            state.finished = True
            progress.found = progress.sound or genotype
            _log.warning(
                "the search has collapsed and stops after epoch %d; the genotype is that of epoch %d",
                state.epoch,
                progress.sound_epoch or state.epoch,
            )
        progress.collapsed = True

    def _read_out(self, probabilities: Mapping[str, Tensor]) -> Genotype:
        config, network = self.config, self.state.network
        match config.search.read_out:
            case "perturbation":
                return by_perturbation(config, self.space, network, probabilities, self.data, self.world)
            case "one_shot":
                return by_evolution(config, self.space, network, self.data, self.world)
            case _:
                return self.space.genotype(probabilities)
