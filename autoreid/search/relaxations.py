"""Relaxations: how alphas become mixing weights; any of them works with any space.

Alphas are logits in all of them. The published code of OSNet-AIN keeps weights w and takes log(ReLU(w)) for the
logits: once negative, a weight has no gradient and never comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.config import Config, Temperature
from autoreid.search.alphas import Alphas
from autoreid.seeding import derive_seed
from autoreid.training.schedules import cosine

#: Whose images a forward pass is on.
Level = Literal["weights", "alphas"]


class Relaxation(Protocol):
    """What the loop asks of a relaxation."""

    def mixing(self, alphas: Alphas, step: int, level: Level) -> dict[str, Tensor]:
        """Mixing weights for the search's forward passes on one level's images in the step after `step` steps.

        Equal arguments give equal weights, on every rank and after a resume; all passes of one level in one step
        share them. They are differentiable in the alphas where autograd is on. (E, O) a group, each row summing
        to 1; or, where autograd is off and a single candidate of each row counts, its column, (E,) on the CPU.
        """

    def evaluation(self, alphas: Alphas) -> dict[str, Tensor]:
        """Mixing weights for measuring retrieval: without noise or gradient."""

    def probabilities(self, alphas: Alphas) -> dict[str, Tensor]:
        """Each choice's probability without noise or gradient: what a genotype is read from."""

    def scheduled(self, step: int) -> dict[str, float]:
        """What changes by the step, with a name for its curve."""


class Softmax:
    """Mixing weights softmax(alpha) over the candidates of each row (DARTS, eq. 2)."""

    def mixing(self, alphas: Alphas, step: int = 0, level: Level = "weights") -> dict[str, Tensor]:  # noqa: ARG002
        """(E, O) a group, the same in every pass."""
        return {name: torch.softmax(alpha, dim=-1) for name, alpha in alphas.groups.items()}

    def evaluation(self, alphas: Alphas) -> dict[str, Tensor]:
        """The mixture that the search trains."""
        return self.probabilities(alphas)

    def probabilities(self, alphas: Alphas) -> dict[str, Tensor]:
        """The mixing weights, without gradient."""
        with torch.no_grad():
            return self.mixing(alphas)

    def scheduled(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """Nothing."""
        return {}


@dataclass(frozen=True)
class GumbelSoftmax:
    """Mixing weights softmax((alpha + Gumbel noise) / temperature) (arXiv 1611.01144, 1611.00712).

    The argmax of alpha + noise is a sample from softmax(alpha). Evaluation takes the most probable candidate.

    Hard, a pass uses that sample: forward the one-hot vector, backward the soft weights' gradient
    (straight-through). The gradient of the weights needs the sampled candidates' outputs only, so without autograd
    in the alphas nothing else is computed: exact. The alphas' gradient is the sum over *all* candidates of
    <∂L/∂mixture, output> · ∂soft weight/∂alpha and needs all outputs, so then all are computed. (GDAS, arXiv
    1910.04465, leaves the others' outputs out of that sum, which changes the gradient.)

    Attributes:
        seed: of the noise, equal on every rank.
        temperature: after so many steps.
        hard: whether forward passes use the sample.
    """

    seed: int
    temperature: Callable[[int], float]
    hard: bool

    def mixing(self, alphas: Alphas, step: int, level: Level) -> dict[str, Tensor]:
        """One draw for each level in each step."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, level))
        perturbed = {name: alpha + _gumbel(alpha, generator) for name, alpha in alphas.groups.items()}
        if self.hard and not torch.is_grad_enabled():
            return {name: values.argmax(-1).cpu() for name, values in perturbed.items()}
        temperature = self.temperature(step)
        soft = {name: torch.softmax(values / temperature, dim=-1) for name, values in perturbed.items()}
        return {name: _straight_through(values) for name, values in soft.items()} if self.hard else soft

    def evaluation(self, alphas: Alphas) -> dict[str, Tensor]:
        """The column of each row's most probable candidate, (E,)."""
        return {name: alpha.detach().argmax(-1).cpu() for name, alpha in alphas.groups.items()}

    def probabilities(self, alphas: Alphas) -> dict[str, Tensor]:
        """The softmax of the alphas: how often each candidate is sampled."""
        return Softmax().probabilities(alphas)

    def scheduled(self, step: int) -> dict[str, float]:
        """The temperature."""
        return {"temperature": self.temperature(step)}


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, -log of standard exponential, made in float64 so that every device sees the same."""
    noise = -torch.empty(like.shape, dtype=torch.float64).exponential_(generator=generator).log()
    if like.device.type == "cuda":
        noise = noise.pin_memory()  # else the host would wait for the copy
    return noise.to(like.device, like.dtype, non_blocking=True)


def _straight_through(soft: Tensor) -> Tensor:
    one_hot = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return one_hot + (soft - soft.detach())


def temperature_at(settings: Temperature, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The temperature after so many steps of a search: by the epoch where it is halved, else step by step."""
    if settings.schedule == "halving":
        halvings = step // steps_per_epoch // settings.every_epochs
        return max(settings.end, settings.start * 0.5**halvings)
    steps = epochs * steps_per_epoch
    if settings.schedule == "cosine":
        return cosine(step, steps, settings.start, settings.end)
    return settings.start + (settings.end - settings.start) * min(step / steps, 1.0)


def build_relaxation(config: Config, steps_per_epoch: int) -> Relaxation:
    """The config's relaxation."""
    if config.search.relaxation == "softmax":
        return Softmax()

    def temperature(step: int) -> float:
        return temperature_at(config.search.temperature, step, steps_per_epoch, config.training.epochs)

    hard = config.search.relaxation == "gumbel_hard"
    return GumbelSoftmax(derive_seed(config.seed, "gumbel"), temperature, hard)
