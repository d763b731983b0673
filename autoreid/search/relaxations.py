"""Relaxations: how mixing weights are computed from alphas. Any relaxation works with any space.

Alphas are logits in all of them. The published code of OSNet-AIN keeps weights w and uses log(ReLU(w)) as logits: a
weight that has become negative has no gradient any more and stays there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.config import Config, Temperature
from autoreid.search.alphas import Alphas
from autoreid.seeding import derive_seed
from autoreid.spaces.space import Mixing, Sample
from autoreid.training.schedules import cosine

#: Which images a forward pass is computed on.
Level = Literal["weights", "alphas"]


class Relaxation(ABC):
    """Computes what a supernet takes beside the images."""

    @abstractmethod
    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:
        """Returns mixing weights (E, O) for each group, differentiable in the alphas; each row sums to 1.

        Equal arguments give equal weights, on every rank and after a resume. All passes of one level in one step
        share them.

        Args:
            step: number of completed steps.
            level: whose images the pass is computed on.
        """

    def sample(self, alphas: Alphas, step: int, level: Level) -> Sample | None:  # noqa: ARG002
        """Returns one candidate for each row, for passes that give the alphas no gradient.

        None if such passes compute the mixture, as all others do. Arguments as in `mixture`.
        """
        return None

    def evaluation(self, alphas: Alphas) -> tuple[Any, ...]:
        """Returns what the supernet takes beside the images when retrieval is measured: no noise, no gradient."""
        return (self.probabilities(alphas),)

    def probabilities(self, alphas: Alphas) -> Mixing:
        """Returns the probability of each candidate, (E, O) for each group; the genotype is read from them."""
        with torch.no_grad():
            return softmax(alphas)

    def scheduled(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """Returns the values that follow a schedule, by the names of their curves."""
        return {}


def softmax(alphas: Alphas) -> dict[str, Tensor]:
    """Applies a softmax to each row of the alphas, (E, O) for each group."""
    return {name: torch.softmax(alpha, dim=-1) for name, alpha in alphas.groups.items()}


class Softmax(Relaxation):
    """Mixing weights softmax(alpha) over the candidates of each row (DARTS, eq. 2)."""

    def mixture(self, alphas: Alphas, step: int = 0, level: Level = "weights") -> Mixing:  # noqa: ARG002
        """Returns the same weights for every pass."""
        return softmax(alphas)


@dataclass(frozen=True)
class TemperatureSchedule:
    """The temperature of a search as a function of the step.

    Attributes:
        settings: start, end and shape.
        steps_per_epoch: steps in an epoch.
        epochs: epochs of the search.
    """

    settings: Temperature
    steps_per_epoch: int
    epochs: int

    def at(self, step: int) -> float:
        """Returns the temperature after `step` steps."""
        settings = self.settings
        if settings.schedule == "halving":
            halvings = step // self.steps_per_epoch // settings.every_epochs
            return max(settings.end, settings.start * 0.5**halvings)
        steps = self.epochs * self.steps_per_epoch
        if settings.schedule == "cosine":
            return cosine(step, steps, settings.start, settings.end)
        return settings.start + (settings.end - settings.start) * min(step / steps, 1.0)


@dataclass(frozen=True)
class GumbelSoftmax(Relaxation):
    """Mixing weights softmax((alpha + Gumbel noise) / temperature) (arXiv 1611.01144, 1611.00712).

    The argmax of alpha + noise is a sample from softmax(alpha). Evaluation uses the most probable candidate.

    If `hard`, the forward pass uses that sample as a one-hot vector, and the backward pass has the gradient of the
    soft weights (straight-through). The gradient of the weights needs the outputs of the sampled candidates only, so
    that passes without a gradient of the alphas compute nothing else, which is exact. The gradient of the alphas is
    the sum over *all* candidates of <∂L/∂mixture, output> · ∂soft weight/∂alpha, and needs all outputs. (GDAS, arXiv
    1910.04465, leaves out the outputs of the other candidates, which changes the gradient.)

    Attributes:
        seed: of the noise, equal on every rank.
        temperature: as a function of the step.
        hard: whether forward passes use the sample.
    """

    seed: int
    temperature: TemperatureSchedule
    hard: bool

    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:
        """Returns weights with the noise of this step and level."""
        temperature = self.temperature.at(step)
        perturbed = self._perturbed(alphas, step, level)
        soft = {name: torch.softmax(values / temperature, dim=-1) for name, values in perturbed.items()}
        return {name: _straight_through(values) for name, values in soft.items()} if self.hard else soft

    def sample(self, alphas: Alphas, step: int, level: Level) -> Sample | None:
        """Returns the argmax of each row of alpha + noise, if `hard`."""
        if not self.hard:
            return None
        with torch.no_grad():
            perturbed = self._perturbed(alphas, step, level)
        return {name: values.argmax(-1).tolist() for name, values in perturbed.items()}

    def evaluation(self, alphas: Alphas) -> tuple[Any, ...]:
        """Returns the most probable candidate of each row as a sample."""
        return None, {name: alpha.argmax(-1).tolist() for name, alpha in alphas.groups.items()}

    def scheduled(self, step: int) -> dict[str, float]:
        """Returns the temperature."""
        return {"temperature": self.temperature.at(step)}

    def _perturbed(self, alphas: Alphas, step: int, level: Level) -> dict[str, Tensor]:
        """Alpha + noise; the noise depends on the seed, the step and the level only."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, level))
        return {name: alpha + _gumbel(alpha, generator) for name, alpha in alphas.groups.items()}


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Samples standard Gumbel noise, -log of exponential noise, in float64 so that it is equal on every device."""
    noise = -torch.empty(like.shape, dtype=torch.float64).exponential_(generator=generator).log()
    if like.device.type == "cuda":
        noise = noise.pin_memory()  # otherwise the host would wait for the copy
    return noise.to(like.device, like.dtype, non_blocking=True)


def _straight_through(soft: Tensor) -> Tensor:
    one_hot = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return one_hot + (soft - soft.detach())


def build_relaxation(config: Config, steps_per_epoch: int) -> Relaxation:
    """Builds the config's relaxation."""
    if config.search.relaxation == "softmax":
        return Softmax()
    temperature = TemperatureSchedule(config.search.temperature, steps_per_epoch, config.training.epochs)
    hard = config.search.relaxation == "gumbel_hard"
    return GumbelSoftmax(derive_seed(config.seed, "gumbel"), temperature, hard)
