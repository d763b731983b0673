"""What every relaxation has in common, and the softmax of DARTS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from autoreid.search.alphas import Alphas
from autoreid.spaces.space import Mixing, Sample

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
            return self.distribution(alphas)

    def distribution(self, alphas: Alphas) -> Mixing:
        """Return the same probabilities, differentiable in the alphas."""
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
