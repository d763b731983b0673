"""The `msinet` space: how the branches of MSINet's six cells interact (arXiv 2303.07065, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from autoreid.spaces.msinet.body import POSITIONS
from autoreid.spaces.msinet.derived import MSINet
from autoreid.spaces.msinet.genotype import CHOICES, INTERACTIONS, MsinetGenotype, random_genotype
from autoreid.spaces.msinet.supernet import GROUP, MsinetSupernet
from autoreid.spaces.space import Choices, Sample, Space


class MsinetSpace(Space):
    """One of four interactions at each of twelve places: 4¹² networks."""

    network_type = MSINet

    def choices(self) -> dict[str, Choices]:
        """Return a single group with a row for each interaction, two for each of the six cells."""
        rows = tuple(f"cell{cell}_interaction{place}" for cell in range(1, 7) for place in (1, 2))
        return {GROUP: Choices(rows, INTERACTIONS)}

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Return the interaction that does nothing."""
        return {"none_share": ("none",)}

    def build_supernet(self, num_identities: int) -> MsinetSupernet:
        """Build the supernet, with random weights from torch's generator."""
        recomputes = self.search.activation_checkpointing == "cell"
        return MsinetSupernet(self.search.msinet.width, num_identities, recomputes)

    def genotype(self, probabilities: Mapping[str, Tensor]) -> MsinetGenotype:
        """Read the most probable interaction at each place. The first one wins a tie."""
        columns = probabilities[GROUP].argmax(-1).tolist()
        return MsinetGenotype.of_interactions([INTERACTIONS[column] for column in columns])

    def random_genotype(self, rng: np.random.Generator) -> MsinetGenotype:
        """Sample one of the 4¹² genotypes."""
        return random_genotype(rng)

    def path(self, genotype: MsinetGenotype) -> Sample:
        """Return the columns of the twelve interactions."""
        return {GROUP: [INTERACTIONS.index(name) for name in genotype.interactions]}

    def mutated(self, genotype: MsinetGenotype, rng: np.random.Generator) -> MsinetGenotype:
        """Return a genotype with another interaction at one random place."""
        names = list(genotype.interactions)
        place = int(rng.integers(CHOICES))
        others = [name for name in INTERACTIONS if name != names[place]]
        names[place] = others[int(rng.integers(len(others)))]
        return MsinetGenotype.of_interactions(names)

    def inherited(self, weights: Mapping[str, Tensor], genotype: MsinetGenotype) -> dict[str, Tensor]:
        """Select the weights of the body, among them those of the chosen interactions."""
        chosen = {
            f"cells.{position}.interact{place}": name
            for position, cell in zip(POSITIONS, genotype.cells, strict=True)
            for place, name in enumerate(cell, start=1)
        }
        found = {}
        for name, value in weights.items():
            place = ".".join(name.split(".", 3)[:3])
            candidate, _, rest = name.removeprefix(f"{place}.").partition(".")
            if place not in chosen:
                found[name] = value
            elif candidate == chosen[place]:
                found[f"{place}.{rest}"] = value
        return found
