"""The step of a search: alphas and weights in turn, each on its own images (DARTS, arXiv 1806.09055), or together."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoreid.config import Config
from autoreid.data.loaders import Batch, BatchStream
from autoreid.data.training_data import SearchData
from autoreid.distributed import StopSignal, World, averaging, check_agreement, check_stop
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.losses import LossValues, RetrievalLoss
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.domains import domain_gains
from autoreid.search.read_out import ReadOut
from autoreid.search.relaxations import Relaxation
from autoreid.search.schedules import alpha_learning_rate
from autoreid.search.signs import best_columns, search_signs, undecided
from autoreid.search.state import SearchResult, SearchState
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import Space
from autoreid.training.accumulation import Accumulation
from autoreid.training.build import memory_format
from autoreid.training.loop import close_epoch
from autoreid.training.measure import is_due, measure_network
from autoreid.training.precision import PassPrecision
from autoreid.training.schedules import learning_rate
from autoreid.training.steps import (
    Agreement,
    Norms,
    average_and_agree_on_step,
    end_step,
    norms_of,
    step_weights,
)

_log = logging.getLogger(__name__)


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
        if state.cost is not None:
            state.cost.measure()
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
        """Perform a step with averaged gradients and return their norms. Without gradients, do nothing.

        The gradient of the expected cost is the same on every rank and for all images, so that it is added here.
        """
        if not gradients:
            return []
        state = self.state
        if state.cost is not None and self.config.search.cost.weight:
            added = state.cost.gradients(state.alphas, self.relaxation)
            gradients = [gradient + more for gradient, more in zip(gradients, added, strict=True)]
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
        return self._most_probable(self.relaxation.probabilities(self.state.alphas))

    def end_epoch(self, stop: StopSignal) -> SearchResult:
        """Close the epoch, read the genotype, check for collapse, and measure retrieval if it is due.

        Raises:
            Interrupted: a stop signal has arrived on any rank; the state is not consistent.
        """
        config, state = self.config, self.state
        metrics = close_epoch(state, config.training.epochs)
        probabilities = self.relaxation.probabilities(state.alphas)
        on_cpu = {name: values.cpu() for name, values in probabilities.items()}
        metrics |= self._signs(on_cpu)
        if state.cost is not None:
            state.cost.measure()
            metrics["cost/expected"] = state.cost.expected(probabilities).item()
        self._check_collapse(on_cpu)
        retrieval, is_best = None, False
        if is_due(state, config.evaluation.every_epochs):
            inputs = self.relaxation.evaluation(state.alphas)
            check_stop(stop)
            retrieval = measure_network(config, state.network, self.data, self.world, inputs)
            is_best = state.record(retrieval)
        if state.finished and state.progress.found is None:
            started = time.monotonic()
            state.progress.found = self._read_out(probabilities, stop)
            state.read_out_seconds = time.monotonic() - started
        return SearchResult(state.epoch, metrics, retrieval, is_best, self.genotype(), on_cpu)

    def _signs(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        """The signs of the epoch, which the progress keeps. Alphas that are not trained have none."""
        if not self.relaxation.learns_alphas:
            return {}
        choices, progress = self.space.choices(), self.state.progress
        progress.undecided = undecided(probabilities, choices, progress.leads())
        signs = search_signs(probabilities, choices, self.space.watched(), progress.undecided)
        signs |= progress.gradient_signs()
        signs |= progress.changes(best_columns(probabilities, choices))
        if self.state.alphas_before is not None:
            signs |= self._domain_gains(self.state.alphas_before)
        progress.signs = signs
        return signs

    def _most_probable(self, probabilities: Mapping[str, Tensor]) -> Genotype:
        """The genotype of the largest alphas, or a probable one within the limit of the cost."""
        genotype, cost = self.space.genotype(probabilities), self.state.cost
        if cost is None:
            return genotype
        tiny = torch.finfo(torch.float32).tiny
        logarithms = {name: values.clamp(min=tiny).log() for name, values in probabilities.items()}
        return cost.within_limit(genotype, logarithms)

    def _domain_gains(self, before: Alphas) -> dict[str, float]:
        """The gains of the epoch on two domains; stores the alphas for the next one."""
        config, state, gains = self.config, self.state, {}
        assert state.alpha_stream is not None  # noqa: S101
        if state.epoch > config.search.warmup_epochs and self.relaxation.learns_alphas:
            layout, domains = memory_format(config.training), len(config.data.sources)
            gains = domain_gains(self.architect, before, state.alpha_stream, domains, layout)
        before.load_state_dict(state.alphas.state_dict())
        return gains

    def _check_collapse(self, probabilities: Mapping[str, Tensor]) -> None:
        """Stop the search if trained alphas gave a degenerate genotype in two epochs in a row (DARTS+).

        The last genotype before them is the result.
        """
        state, progress = self.state, self.state.progress
        if state.epoch <= self.config.search.warmup_epochs or not self.relaxation.learns_alphas:
            return
        # Not that within the limit of the cost, which may have cheap choices for another reason.
        collapsed = self.space.has_collapsed(self.space.genotype(probabilities))
        genotype = self._most_probable(probabilities)
        if not collapsed:
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

    def _read_out(self, probabilities: Mapping[str, Tensor], stop: StopSignal) -> Genotype:
        if self.config.search.read_out == "argmax":
            return self._most_probable(probabilities)
        state = self.state
        read_out = ReadOut(self.config, self.space, state.network, self.data, self.world, stop, state.cost)
        if self.config.search.read_out == "perturbation":
            return read_out.by_perturbation(probabilities)
        return read_out.by_evolution()
