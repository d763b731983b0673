"""Softmax of randomly perturbed alphas."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autoreid.search.alphas import Alphas
from autoreid.search.relaxations.relaxation import Level, Relaxation, softmax
from autoreid.seeding import derive_seed
from autoreid.spaces.space import Mixing


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
