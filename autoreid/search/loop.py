"""The search: alphas and weights in turn on images of their own, epoch after epoch, from any step on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoreid.config import Config
from autoreid.data.loaders import BatchStream
from autoreid.distributed import StopSignal, World, average_and_agree, check_agreement, gather_objects
from autoreid.errors import DataError, RunError
from autoreid.evaluation import RetrievalResult
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.collapse import collapse_signs, count_skips
from autoreid.search.genotype import CellGenotype
from autoreid.search.objective import Objective
from autoreid.search.reid_cell import ReidCellSpace
from autoreid.search.relaxations import Relaxation
from autoreid.training.schedules import cosine

#: What is averaged over the steps of an epoch.
METRICS = ("loss", "classification", "triplet", "accuracy")


@dataclass
class SearchState:
    """All that changes during a search; what `state_dict` holds is what resumes.

    Attributes:
        step: steps done, one of the alphas and one of the weights each.
        epoch: epochs done.
        finished: whether the last epoch is over, or the search stopped itself.
        retrieval: the last measured `map` and `cmc`.
        seconds: spent on steps, over all restarts.
        restarts: how often the run was resumed.
        totals: sums of METRICS over the current epoch's steps.
    """

    supernet: nn.Module
    alphas: Alphas
    weight_optimizer: torch.optim.SGD
    alpha_optimizer: torch.optim.Adam
    weight_stream: BatchStream
    alpha_stream: BatchStream
    step: int = 0
    epoch: int = 0
    finished: bool = False
    best_map: float = -1.0
    retrieval: dict[str, Any] | None = None
    seconds: float = 0.0
    restarts: int = 0
    totals: Tensor = field(default_factory=lambda: torch.zeros(len(METRICS)))

    @property
    def steps_per_epoch(self) -> int:
        """An epoch is one pass over the weights' images."""
        return self.weight_stream.batches_per_epoch

    @property
    def step_in_epoch(self) -> int:
        """Steps done in the current epoch."""
        return self.step - self.epoch * self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: weights, alphas, optimisers, positions, random state."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return (
            parts | self._numbers() | {"totals": self.totals.cpu(), "random": [torch.get_rng_state(), cuda]}
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken; learning rates follow from the step."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for name in self._numbers():
            setattr(self, name, state[name])
        self.totals = state["totals"].to(self.totals.device)
        cpu, cuda = state["random"]
        torch.set_rng_state(cpu)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)

    def _parts(self) -> dict[str, Any]:
        names = ("supernet", "alphas", "weight_optimizer", "alpha_optimizer", "weight_stream", "alpha_stream")
        return {name: getattr(self, name) for name in names}

    def _numbers(self) -> dict[str, Any]:
        names = ("step", "epoch", "finished", "best_map", "retrieval", "seconds", "restarts")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class EpochResult:
    """What an epoch came to.

    Attributes:
        epoch: counted from 1.
        metrics: means over the epoch's steps and ranks, and the signs of collapse.
        retrieval: on query and gallery; None if this epoch was not measured.
        genotype: what the alphas say now.
        probabilities: of each choice, (E, O) a group.
        is_best: whether the retrieval was the best so far.
    """

    epoch: int
    metrics: dict[str, float]
    retrieval: RetrievalResult | None
    genotype: CellGenotype
    probabilities: dict[str, Tensor]
    is_best: bool


class Report(Protocol):
    """Whom the loop tells what happens; ranks other than 0 may say nothing."""

    def start_epoch(self, state: SearchState) -> None:
        """An epoch begins, or goes on in its middle."""

    def step(self, state: SearchState, metrics: Tensor, learning_rate: float) -> None:
        """A step was done; metrics are this rank's, in the order of METRICS."""

    def end_epoch(self, state: SearchState, result: EpochResult) -> None:
        """An epoch ended."""


@dataclass(frozen=True)
class SearchParts:
    """What a search is made of and does not change.

    Attributes:
        network: the supernet as the weights train it, under DDP where there are ranks.
        measure: embeds held-out images with given mixing weights and ranks them.
    """

    space: ReidCellSpace
    relaxation: Relaxation
    architect: Architect
    objective: Objective
    network: nn.Module
    measure: Callable[[Mapping[str, Tensor]], RetrievalResult]


def search(
    config: Config,
    state: SearchState,
    parts: SearchParts,
    save: Callable[[SearchState, bool], None],
    report: Report,
    world: World,
    stop: StopSignal,
) -> bool:
    """Runs the search to its end, or to the step boundary after a stop signal.

    Args:
        save: writes a checkpoint of the state, and says whether it is the best; all ranks call it.

    Returns:
        Whether it came to its end; if not, it is saved where it stopped.

    Raises:
        DataError: an image could not be read.
        RunError: a gradient is not finite; names step and parameter.
        DisagreementError: the ranks' alphas differ.
    """
    while not state.finished:
        report.start_epoch(state)
        while state.step_in_epoch < state.steps_per_epoch:
            started = time.monotonic()
            stopping, metrics = search_step(config, state, parts, world, stop)
            state.seconds += time.monotonic() - started
            report.step(state, metrics, learning_rate(config, state))
            epoch_ends = state.step_in_epoch == state.steps_per_epoch
            if stopping or (state.step % config.checkpoint.every_steps == 0 and not epoch_ends):
                # Rank 0's file speaks for all: from here on every rank counts from their mean.
                (state.totals,), _ = average_and_agree([state.totals])
                save(state, False)
            if stopping:
                return False
        result = _end_epoch(config, state, parts)
        # Reported before it is saved: a run killed in between reports the epoch again rather than never.
        report.end_epoch(state, result)
        save(state, result.is_best)
    return True


def search_step(
    config: Config, state: SearchState, parts: SearchParts, world: World, stop: StopSignal
) -> tuple[bool, Tensor]:
    """One step of the alphas, then one of the weights.

    Returns:
        Whether any rank has received a stop signal (the step is done, and all ranks know), and this rank's METRICS.
    """
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    weight_batch = next(state.weight_stream).to(world.device, memory_format)
    alpha_batch = next(state.alpha_stream).to(world.device, memory_format)
    state.weight_optimizer.param_groups[0]["lr"] = learning_rate(config, state)

    mine: list[Tensor] = []
    if state.epoch >= config.search.warmup_epochs:
        mine = parts.architect.gradients(alpha_batch, weight_batch)
    broken = weight_batch.broken or alpha_batch.broken
    # The step's one all-reduce beside DDP's buckets carries what all ranks must know as well.
    gradients, (stopping, any_broken) = average_and_agree(
        mine, (stop.received is not None, broken is not None)
    )
    if any_broken:
        raise DataError(next(message for message in gather_objects(broken) if message))
    if gradients:
        for (name, alpha), gradient in zip(state.alphas.named_parameters(), gradients, strict=True):
            _require_finite(f"alphas.{name}", gradient, state.step)
            alpha.grad = gradient
        state.alpha_optimizer.step()

    with torch.no_grad():
        mixing = parts.relaxation.mixing(state.alphas)
    state.weight_optimizer.zero_grad()
    score = parts.objective(parts.network, weight_batch, mixing)
    score.losses.total.backward()
    _clip(state, config.training.gradient_clip)
    state.weight_optimizer.step()

    metrics = torch.stack([*(term.detach() for term in score.losses), score.accuracy])
    state.totals += metrics
    state.step += 1
    if state.step % config.distributed.digest_every_steps == 0:
        check_agreement("alphas", state.alphas.digest(), state.step)
    return stopping, metrics


def learning_rate(config: Config, state: SearchState) -> float:
    """The weights' learning rate at the state's step."""
    training = config.training
    steps = training.epochs * state.steps_per_epoch
    return cosine(state.step, steps, training.learning_rate, training.final_learning_rate)


def _clip(state: SearchState, limit: float | None) -> None:
    """Clips the weights' gradient; DDP has averaged it, so every rank sees the same norm and decides alike."""
    weights = [weight for weight in state.supernet.parameters() if weight.grad is not None]
    norm = nn.utils.clip_grad_norm_(weights, limit if limit is not None else torch.inf)
    if not torch.isfinite(norm):
        for name, weight in state.supernet.named_parameters():
            if weight.grad is not None:
                _require_finite(name, weight.grad, state.step)


def _require_finite(name: str, gradient: Tensor, step: int) -> None:
    if not torch.isfinite(gradient).all():
        raise RunError(
            f"step {step + 1}: the gradient of {name} is not finite; a lower learning rate may help"
        )


def _end_epoch(config: Config, state: SearchState, parts: SearchParts) -> EpochResult:
    (totals,), _ = average_and_agree([state.totals])
    means = (totals / state.steps_per_epoch).tolist()
    state.totals.zero_()
    state.epoch += 1
    probabilities = {
        name: values.cpu() for name, values in parts.relaxation.probabilities(state.alphas).items()
    }
    genotype = parts.space.genotype(probabilities)
    limit = config.search.stop_at_skips
    collapsed = limit is not None and count_skips(genotype.normal) >= limit
    state.finished = collapsed or state.epoch == config.training.epochs
    retrieval = None
    if state.finished or state.epoch % config.evaluation.every_epochs == 0:
        retrieval = parts.measure(parts.relaxation.probabilities(state.alphas))
        state.retrieval = {
            "map": retrieval.map,
            "cmc": {str(rank): rate for rank, rate in retrieval.cmc.items()},
        }
    is_best = retrieval is not None and retrieval.map > state.best_map
    if retrieval is not None and is_best:
        state.best_map = retrieval.map
    metrics = dict(zip(METRICS, means, strict=True))
    metrics |= collapse_signs(probabilities, config.search.operations)
    return EpochResult(state.epoch, metrics, retrieval, genotype, probabilities, is_best)
