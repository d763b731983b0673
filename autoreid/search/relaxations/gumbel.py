"""Gumbel-softmax: soft, straight-through, and with the sampled candidates only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.search.alphas import Alphas
from autoreid.search.relaxations.relaxation import Level, Relaxation
from autoreid.search.schedules import TemperatureSchedule
from autoreid.seeding import derive_seed
from autoreid.spaces.space import Mixing, Sample


@dataclass(frozen=True)
class GumbelSoftmax(Relaxation):
    """Mixing weights softmax((alpha + Gumbel noise) / temperature) (arXiv 1611.01144, 1611.00712).

    The argmax of alpha + noise is a sample from softmax(alpha). Retrieval is measured on the mixture by softmax(alpha).

    Attributes:
        seed: of the noise, equal on every rank.
        temperature: as a function of the step.
    """

    seed: int
    temperature: TemperatureSchedule

    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:
        """Return weights with the noise of this step and level."""
        temperature = self.temperature.at(step)
        perturbed = self._perturbed(alphas, step, level)
        return {name: torch.softmax(values / temperature, dim=-1) for name, values in perturbed.items()}

    def scheduled(self, step: int) -> dict[str, float]:
        """Return the temperature."""
        return {"temperature": self.temperature.at(step)}

    def _perturbed(self, alphas: Alphas, step: int, level: Level) -> dict[str, Tensor]:
        """Alpha + noise; the noise depends on the seed, the step and the level only."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, level))
        return {name: alpha + _gumbel(alpha, generator) for name, alpha in alphas.groups.items()}


@dataclass(frozen=True)
class HardGumbelSoftmax(GumbelSoftmax):
    """Gumbel-softmax whose forward pass uses the sample as a one-hot vector (straight-through).

    The backward pass has the gradient of the soft weights. The gradient of the weights needs the outputs of the
    sampled candidates only, so that passes without a gradient of the alphas compute nothing else, which is exact. The
    gradient of the alphas is the sum over *all* candidates of <∂L/∂mixture, output> · ∂soft weight/∂alpha, and needs
    all outputs.
    """

    samples: ClassVar[bool] = True

    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:
        """Return one-hot weights with the gradient of the soft ones."""
        soft = super().mixture(alphas, step, level)
        return {name: _straight_through(values) for name, values in soft.items()}

    def sample(self, alphas: Alphas, step: int, level: Level, alphas_learn: bool) -> Sample | None:
        """Return the argmax of each row of alpha + noise for passes without a gradient of the alphas."""
        if alphas_learn:
            return None
        with torch.no_grad():
            perturbed = self._perturbed(alphas, step, level)
        return {name: values.argmax(-1).tolist() for name, values in perturbed.items()}


class GDAS(HardGumbelSoftmax):
    """Straight-through Gumbel-softmax that computes the sampled candidates only, in every pass (arXiv 1910.04465).

    The gradient of the alphas leaves out the outputs of the other candidates: cheaper by about the number of
    candidates, but another gradient than `HardGumbelSoftmax` has.
    """

    def sample(self, alphas: Alphas, step: int, level: Level, alphas_learn: bool) -> Sample | None:  # noqa: ARG002
        """Return the argmax of each row of alpha + noise for every pass."""
        return super().sample(alphas, step, level, alphas_learn=False)


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Sample standard Gumbel noise, -log of exponential noise, in float64 so that it is equal on every device."""
    noise = -torch.empty(like.shape, dtype=torch.float64).exponential_(generator=generator).log()
    if like.device.type == "cuda":
        noise = noise.pin_memory()  # otherwise the host would wait for the copy
    return noise.to(like.device, like.dtype, non_blocking=True)


def _straight_through(soft: Tensor) -> Tensor:
    one_hot = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return one_hot + (soft - soft.detach())
