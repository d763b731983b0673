"""Mixing weights sampled from Dirichlet distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet

from autoreid.search.alphas import Alphas
from autoreid.search.relaxations.relaxation import Level, Relaxation
from autoreid.seeding import derive_seed
from autoreid.spaces.space import Mixing


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
            # Not torch.manual_seed, which would also seed the generators of all GPUs.
            torch.default_generator.manual_seed(derive_seed(self.seed, step, level))
            return {
                name: Dirichlet(_concentration(alpha).cpu().double(), validate_args=False)
                .rsample()
                .to(alpha.device, alpha.dtype)
                for name, alpha in alphas.groups.items()
            }

    def distribution(self, alphas: Alphas) -> Mixing:
        """Return the means of the distributions."""
        found = {name: _concentration(alpha) for name, alpha in alphas.groups.items()}
        return {name: values / values.sum(-1, keepdim=True) for name, values in found.items()}


def _concentration(alpha: Tensor) -> Tensor:
    """elu(alpha) + 1, which is positive; bounded from below where float32 would round it to 0."""
    return (F.elu(alpha) + 1).clamp(min=1e-3)
