"""The search: alphas and weights in turn, on images of their own (DARTS, arXiv 1806.09055, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoreid.config import Config
from autoreid.data.loaders import BatchStream
from autoreid.distributed import StopSignal, World, check_agreement
from autoreid.evaluation import MeanRetrieval
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.collapse import collapse_signs, count_skips
from autoreid.search.genotype import CellGenotype
from autoreid.search.reid_cell import ReidCellSpace
from autoreid.search.relaxations import Relaxation
from autoreid.training.build import memory_format
from autoreid.training.loop import EpochResult, close_epoch, measure_epoch
from autoreid.training.objective import Objective
from autoreid.training.schedules import learning_rate
from autoreid.training.state import RunState
from autoreid.training.steps import average_and_agree_on_step, require_finite, train_weights


@dataclass(kw_only=True)
class SearchState(RunState):
    """All that changes during a search: a step is one of the alphas and one of the weights."""

    PARTS: ClassVar[tuple[str, ...]] = (*RunState.PARTS, "alphas", "alpha_optimizer", "alpha_stream")

    alphas: Alphas
    alpha_optimizer: torch.optim.Adam
    alpha_stream: BatchStream


@dataclass(frozen=True)
class SearchResult(EpochResult):
    """What an epoch of a search came to.

    Attributes:
        genotype: what the alphas say now.
        probabilities: of each choice, (E, O) a group.
    """

    genotype: CellGenotype
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
    space: ReidCellSpace
    relaxation: Relaxation
    architect: Architect
    objective: Objective
    network: nn.Module
    measure: Callable[[Mapping[str, Tensor]], MeanRetrieval]

    def learning_rate(self) -> float:
        """The weights', at the state's step."""
        return learning_rate(self.config.training, self.state.step, self.state.steps_per_epoch)

    def step(self, stop: StopSignal) -> tuple[bool, Tensor]:
        """One step of the alphas, then one of the weights."""
        config, state = self.config, self.state
        layout = memory_format(config.training)
        weight_batch = next(state.stream).to(self.world.device, layout)
        alpha_batch = next(state.alpha_stream).to(self.world.device, layout)
        state.set_learning_rate(self.learning_rate())

        mine: list[Tensor] = []
        if state.epoch >= config.search.warmup_epochs:
            mine = self.architect.gradients(alpha_batch, weight_batch)
        gradients, stopping = average_and_agree_on_step(mine, (weight_batch, alpha_batch), stop)
        if gradients:
            for (name, alpha), gradient in zip(state.alphas.named_parameters(), gradients, strict=True):
                require_finite(f"alphas.{name}", gradient, state.step)
                alpha.grad = gradient
            state.alpha_optimizer.step()

        with torch.no_grad():
            mixing = self.relaxation.mixing(state.alphas)
        clip = config.training.gradient_clip
        metrics = train_weights(state, self.objective, self.network, weight_batch, clip, mixing)
        state.count(metrics)
        if state.step % config.distributed.digest_every_steps == 0:
            check_agreement("alphas", state.alphas.digest(), state.step)
        return stopping, metrics

    def genotype(self) -> CellGenotype:
        """What the alphas say now."""
        return self.space.genotype(self.relaxation.probabilities(self.state.alphas))

    def end_epoch(self) -> SearchResult:
        """Measures the supernet, reads the genotype and watches for collapse."""
        config, state = self.config, self.state
        metrics = close_epoch(state, config.training.epochs)
        genotype = self.genotype()
        limit = config.search.stop_at_skips
        if limit is not None and count_skips(genotype.normal) >= limit:
            state.finished = True
        probabilities = self.relaxation.probabilities(state.alphas)
        retrieval, is_best = measure_epoch(
            state, config.evaluation.every_epochs, lambda: self.measure(probabilities)
        )
        on_cpu = {name: values.cpu() for name, values in probabilities.items()}
        metrics |= collapse_signs(on_cpu, config.search.operations)
        return SearchResult(state.epoch, metrics, retrieval, is_best, genotype, on_cpu)
