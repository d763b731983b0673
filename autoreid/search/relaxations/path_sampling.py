"""Random networks instead of mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from autoreid.search.alphas import Alphas
from autoreid.search.relaxations.relaxation import Level, Relaxation, softmax
from autoreid.seeding import derive_seed
from autoreid.spaces.space import Mixing, Sample, Space


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
