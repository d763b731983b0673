"""The search: alphas and weights in turn on images of their own (DARTS, arXiv 1806.09055, algorithm 1), or together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoreid.config import Config
from autoreid.data.loaders import Batch, BatchStream
from autoreid.distributed import StopSignal, World, check_agreement
from autoreid.evaluation import MeanRetrieval
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.collapse import search_signs
from autoreid.search.relaxations import Relaxation
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import Space
from autoreid.training.accumulation import Accumulation
from autoreid.training.build import memory_format
from autoreid.training.loop import EpochResult, close_epoch, measure_epoch
from autoreid.training.objective import Objective, Score
from autoreid.training.schedules import learning_rate
from autoreid.training.state import RunState
from autoreid.training.steps import Norms, average_and_agree_on_step, end_step, norms_of, step_weights


@dataclass(kw_only=True)
class SearchState(RunState):
    """All that changes during a search: a step is one of the alphas and one of the weights.

    Attributes:
        alpha_stream: batches for the alphas; None where they learn from the weights' batches.
    """

    PARTS: ClassVar[tuple[str, ...]] = (*RunState.PARTS, "alphas", "alpha_optimizer", "alpha_stream")

    alphas: Alphas
    alpha_optimizer: torch.optim.Optimizer
    alpha_stream: BatchStream | None


@dataclass(frozen=True)
class SearchResult(EpochResult):
    """What an epoch of a search came to.

    Attributes:
        genotype: what the alphas say now.
        probabilities: of each choice, (E, O) a group.
    """

    genotype: Genotype
    probabilities: dict[str, Tensor]


@dataclass(frozen=True)
class SearchTask:
    """What a search is made of.

    Attributes:
        network: the supernet as the weights train it, under DDP where there are ranks.
        measure: embeds the targets with given mixing weights and ranks them.
    """

    config: Config
    world: World
    state: SearchState
    space: Space
    relaxation: Relaxation
    architect: Architect
    objective: Objective
    accumulation: Accumulation
    network: nn.Module
    measure: Callable[[Mapping[str, Tensor]], MeanRetrieval]

    def learning_rate(self) -> float:
        """The weights', at the state's step."""
        return learning_rate(self.config.training, self.state.step, self.state.steps_per_epoch)

    def alpha_learning_rate(self) -> float:
        """The alphas', at the state's step."""
        search, training = self.config.search, self.config.training
        share = self.learning_rate() / training.learning_rate if search.alpha_optimizer == "sgd" else 1.0
        return search.alpha_learning_rate * share

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """One step of the alphas and one of the weights."""
        state = self.state
        state.set_learning_rate(self.learning_rate())
        for group in state.alpha_optimizer.param_groups:
            group["lr"] = self.alpha_learning_rate()
        if state.alpha_stream is None:
            stopping, metrics = self._step_together(stop)
        else:
            stopping, metrics = self._step_in_turn(state.alpha_stream, stop)
        state.count(metrics)
        if state.step % self.config.distributed.digest_every_steps == 0:
            check_agreement("alphas", state.alphas.digest(), state.step)
        return stopping, metrics

    def _step_in_turn(self, alpha_stream: BatchStream, stop: StopSignal) -> tuple[bool, Tensor]:
        """First the alphas on their images, then the weights on theirs."""
        state = self.state
        weight_batch, alpha_batch = self._next(state.stream), self._next(alpha_stream)
        mine: list[Tensor] = []
        if self._alphas_move():
            mine = self.architect.gradients(alpha_batch, weight_batch, state.step)
        gradients, agreement = average_and_agree_on_step(mine, (weight_batch, alpha_batch), stop)
        norms = self._step_alphas(gradients)
        metrics = self._backward(weight_batch, alphas_move=False)
        norms.append(step_weights(state, self.config.training.gradient_clip))
        return end_step(state.step, agreement, *norms), metrics

    def _step_together(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """Alphas and weights by one backward pass on the same images."""
        state = self.state
        batch = self._next(state.stream)
        state.alpha_optimizer.zero_grad()
        metrics = self._backward(batch, self._alphas_move())
        mine = [alpha.grad for alpha in state.alphas.parameters() if alpha.grad is not None]
        gradients, agreement = average_and_agree_on_step(mine, (batch,), stop)
        norms = self._step_alphas(gradients)
        norms.append(step_weights(state, self.config.training.gradient_clip))
        return end_step(state.step, agreement, *norms), metrics

    def rehearse(self, batches: Iterator[Batch]) -> None:
        """Dry run: computes the gradients of a step without DDP. No state changes."""
        state, weight_batch = self.state, next(batches)
        # As in a step, both batches are there before either is computed with.
        alpha_batch = None if state.alpha_stream is None else next(batches)
        # The weights' first: in a run, their last gradient is still there when the alphas' turn comes.
        with frozen_statistics(state.network):
            replace(self, network=state.network)._backward(weight_batch, alpha_batch is None)
            if alpha_batch is not None:
                self.architect.gradients(alpha_batch, weight_batch, state.step)
        state.weight_optimizer.zero_grad()
        state.alpha_optimizer.zero_grad()

    def _backward(self, batch: Batch, alphas_move: bool) -> Tensor:
        """Gives the weights their gradient, and the alphas theirs if they move with them; this rank's METRICS."""
        self.state.weight_optimizer.zero_grad()
        with self.objective.passes():
            return self.accumulation.backward(self.network, partial(self._score, alphas_move), batch)

    def _score(self, alphas_move: bool, batch: Batch) -> Score:
        with torch.set_grad_enabled(alphas_move):
            mixing = self.relaxation.mixing(self.state.alphas, self.state.step, "weights")
        return self.objective(self.network, batch, mixing)

    def _next(self, stream: BatchStream) -> Batch:
        return next(stream).to(self.world.device, memory_format(self.config.training))

    def _alphas_move(self) -> bool:
        return self.state.epoch >= self.config.search.warmup_epochs

    def _step_alphas(self, gradients: Sequence[Tensor]) -> list[Norms]:
        """A step with the gradients averaged over the ranks, and their norms; without any, none."""
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
        """What the alphas say now."""
        return self.space.genotype(self.relaxation.probabilities(self.state.alphas))

    def end_epoch(self) -> SearchResult:
        """Measures the supernet, reads the genotype and watches for collapse."""
        config, state = self.config, self.state
        metrics = close_epoch(state, config.training.epochs)
        genotype = self.genotype()
        state.finished |= self.space.has_collapsed(genotype)
        retrieval, is_best = measure_epoch(
            state,
            config.evaluation.every_epochs,
            lambda: self.measure(self.relaxation.evaluation(state.alphas)),
        )
        probabilities = self.relaxation.probabilities(state.alphas)
        on_cpu = {name: values.cpu() for name, values in probabilities.items()}
        metrics |= search_signs(on_cpu, self.space.choices(), self.space.watched())
        return SearchResult(state.epoch, metrics, retrieval, is_best, genotype, on_cpu)
