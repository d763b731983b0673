"""Relaxations: how mixing weights are computed from alphas. Any relaxation works with any space.

Alphas are logits in all of them. The published code of OSNet-AIN keeps weights w and uses log(ReLU(w)) as logits: a
weight that has become negative has no gradient any more and stays there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet

from autoreid.config import Config
from autoreid.search.alphas import Alphas
from autoreid.search.schedules import TemperatureSchedule
from autoreid.seeding import derive_seed
from autoreid.spaces.space import Mixing, Sample, Space

#: Which images a forward pass is computed on.
Level = Literal["weights", "alphas"]


class Relaxation(ABC):
    """The way from alphas to a supernet's other inputs: mixing weights, or a sample of candidates.

    Attributes:
        samples: whether passes may leave candidates out, whose weights then have no gradient.
        learns_alphas: whether the alphas are trained.
    """

    samples: ClassVar[bool] = False
    learns_alphas: ClassVar[bool] = True

    def inputs(self, alphas: Alphas, step: int, level: Level, alphas_learn: bool) -> tuple[Any, ...]:
        """Return what the supernet takes in addition to the images, in a pass of a search.

        Equal arguments give equal results, on every rank and after a resume. All passes of one level in one step
        share them.

        Args:
            step: number of completed steps.
            level: the level whose images the pass uses.
            alphas_learn: whether the pass gives the alphas a gradient.
        """
        sample = self.sample(alphas, step, level, alphas_learn)
        if sample is not None:
            return (self.mixture(alphas, step, level) if alphas_learn else None), sample
        with torch.set_grad_enabled(alphas_learn):
            return (self.mixture(alphas, step, level),)

    @abstractmethod
    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:
        """Return mixing weights (E, O) for each group, differentiable in the alphas; arguments as in `inputs`."""

    def sample(
        self,
        alphas: Alphas,  # noqa: ARG002
        step: int,  # noqa: ARG002
        level: Level,  # noqa: ARG002
        alphas_learn: bool,  # noqa: ARG002
    ) -> Sample | None:
        """Return the only candidates to compute, or None to compute all; arguments as in `inputs`."""
        return None

    def evaluation(self, alphas: Alphas) -> tuple[Any, ...]:
        """Return what the supernet takes in addition to the images when it is measured: without noise or gradient."""
        return (self.probabilities(alphas),)

    def probabilities(self, alphas: Alphas) -> Mixing:
        """Return the probability of each candidate, (E, O) for each group; the genotype is read from them."""
        with torch.no_grad():
            return softmax(alphas)

    def scheduled(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """Return the values that follow a schedule, by the names of their curves."""
        return {}


def softmax(alphas: Alphas) -> dict[str, Tensor]:
    """Apply a softmax to each row of the alphas, (E, O) for each group."""
    return {name: torch.softmax(alpha, dim=-1) for name, alpha in alphas.groups.items()}


class Softmax(Relaxation):
    """Mixing weights softmax(alpha) over the candidates of each row (DARTS, eq. 2)."""

    def mixture(self, alphas: Alphas, step: int = 0, level: Level = "weights") -> Mixing:  # noqa: ARG002
        """Return the same weights for every pass."""
        return softmax(alphas)


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


@dataclass(frozen=True)
class DrNAS(Relaxation):
    """Mixing weights sampled from Dirichlet distributions with concentrations elu(alpha) + 1 (arXiv 2006.10355).

    The gradient is that of the reparametrised sample. The probabilities are the means of the distributions.

    Attributes:
        seed: of the samples, equal on every rank.
    """

    seed: int

    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:
        """Return the sample of this step and level, made in float64 on the CPU so that it is equal on every device."""
        with torch.random.fork_rng([]):
            torch.manual_seed(derive_seed(self.seed, step, level))
            return {
                name: Dirichlet(_concentration(alpha).cpu().double(), validate_args=False)
                .rsample()
                .to(alpha.device, alpha.dtype)
                for name, alpha in alphas.groups.items()
            }

    def probabilities(self, alphas: Alphas) -> Mixing:
        """Return the means of the distributions."""
        with torch.no_grad():
            found = {name: _concentration(alpha) for name, alpha in alphas.groups.items()}
            return {name: values / values.sum(-1, keepdim=True) for name, values in found.items()}


def _concentration(alpha: Tensor) -> Tensor:
    """elu(alpha) + 1, which is positive; bounded from below where float32 would round it to 0."""
    return (F.elu(alpha) + 1).clamp(min=1e-3)


@dataclass(frozen=True)
class SmoothDARTS(Relaxation):
    """Softmax of randomly perturbed alphas in the weights' passes (SDARTS-RS, arXiv 2002.05283, eq. 5).

    The perturbation is uniform in [-ε, ε]; ε grows linearly from 0 to `largest` over the search. Weights that work for
    all alphas nearby lose less when the mixture becomes a genotype. The alphas' passes are not perturbed.

    Attributes:
        seed: of the perturbation, equal on every rank.
        largest: ε at the end.
        steps: steps of the search.
    """

    seed: int
    steps: int
    largest: float = 0.3

    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:
        """Return softmax(alpha), perturbed for the weights."""
        if level == "alphas":
            return softmax(alphas)
        epsilon = self._epsilon(step)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, level))
        found = {}
        for name, alpha in alphas.groups.items():
            noise = 2 * torch.rand(alpha.shape, generator=generator, dtype=torch.float64) - 1
            found[name] = torch.softmax(alpha + epsilon * noise.to(alpha.device, alpha.dtype), dim=-1)
        return found

    def scheduled(self, step: int) -> dict[str, float]:
        """Return the size of the perturbation."""
        return {"perturbation": self._epsilon(step)}

    def _epsilon(self, step: int) -> float:
        return self.largest * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class PathSampling(Relaxation):
    """Trains one random network of the space in each step; the alphas are not trained.

    A one-shot read-out then compares networks that all have the supernet's weights (arXiv 1904.00420). A network is
    sampled as a genotype, so that a node has as many inputs as it has in a derived network.

    Attributes:
        space: what networks are sampled from.
        seed: of the samples, equal on every rank.
        fair: in successive steps, each choice takes each of its candidates once, in random order (FairNAS, arXiv
            1907.01845). Otherwise candidates are independent.
    """

    samples: ClassVar[bool] = True
    learns_alphas: ClassVar[bool] = False

    space: Space
    seed: int
    fair: bool

    def mixture(self, alphas: Alphas, step: int, level: Level) -> Mixing:  # noqa: ARG002
        """Return equal weights for all candidates."""
        return softmax(alphas)

    def sample(self, alphas: Alphas, step: int, level: Level, alphas_learn: bool) -> Sample | None:  # noqa: ARG002
        """Return the network of this step."""
        path = self.space.path(self.space.random_genotype(self._rng("path", step)))
        return self._fair(path, step) if self.fair else path

    def evaluation(self, alphas: Alphas) -> tuple[Any, ...]:  # noqa: ARG002
        """Return one network of the space, the same each time."""
        return None, self.space.path(self.space.random_genotype(self._rng("evaluation")))

    def _fair(self, path: Sample, step: int) -> Sample:
        found = {}
        for name, group in self.space.choices().items():
            allowed = group.allowed
            cycle, turn = divmod(step, len(allowed))
            orders = [self._rng(name, row, cycle).permutation(allowed) for row in range(len(group.rows))]
            found[name] = [
                int(order[turn]) if column in allowed else column
                for order, column in zip(orders, path[name], strict=True)
            ]
        return found

    def _rng(self, *of: str | int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, *of))


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Sample standard Gumbel noise, -log of exponential noise, in float64 so that it is equal on every device."""
    noise = -torch.empty(like.shape, dtype=torch.float64).exponential_(generator=generator).log()
    if like.device.type == "cuda":
        noise = noise.pin_memory()  # otherwise the host would wait for the copy
    return noise.to(like.device, like.dtype, non_blocking=True)


def _straight_through(soft: Tensor) -> Tensor:
    one_hot = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return one_hot + (soft - soft.detach())


def build_relaxation(config: Config, space: Space, steps_per_epoch: int) -> Relaxation:
    """Build the config's relaxation."""
    name, seed = config.search.relaxation, derive_seed(config.seed, "gumbel")
    temperature = TemperatureSchedule(config.search.temperature, steps_per_epoch, config.training.epochs)
    match name:
        case "softmax":
            return Softmax()
        case "gumbel":
            return GumbelSoftmax(seed, temperature)
        case "gumbel_hard":
            return HardGumbelSoftmax(seed, temperature)
        case "gdas":
            return GDAS(seed, temperature)
        case "drnas":
            return DrNAS(derive_seed(config.seed, name))
        case "sdarts":
            return SmoothDARTS(derive_seed(config.seed, name), config.training.epochs * steps_per_epoch)
        case _:
            return PathSampling(space, derive_seed(config.seed, name), name == "fair")
