"""The `osnet_ain` space: where instance norm belongs in OSNet's six blocks (arXiv 1910.06827, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from autoreid.spaces.osnet_ain.derived import DerivedOSNet
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS, OsnetAinGenotype
from autoreid.spaces.osnet_ain.supernet import GROUP, OsnetAinSupernet
from autoreid.spaces.space import Choices, Sample, Space

#: The six blocks' names in the network, in order.
_PLACES = tuple(f"{stage}.{block}" for stage in ("conv2", "conv3", "conv4") for block in (0, 1))


class OsnetAinSpace(Space):
    """One of four blocks at each of six places: 4,096 networks."""

    genotype_type = OsnetAinGenotype
    network_type = DerivedOSNet

    def choices(self) -> dict[str, Choices]:
        """A row for each block, two in each of three stages."""
        rows = tuple(f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in (1, 2))
        return {GROUP: Choices(rows, OSNET_BLOCKS)}

    def watched(self) -> dict[str, tuple[str, ...]]:
        """How much of the mixture has instance norm at all."""
        return {"in_share": OSNET_BLOCKS[1:]}

    def build_supernet(self, num_identities: int) -> OsnetAinSupernet:
        """The supernet, with fresh weights from torch's generator."""
        recomputes = self.search.activation_checkpointing == "cell"
        return OsnetAinSupernet(self.search.osnet_ain.width, num_identities, recomputes)

    def genotype(self, probabilities: Mapping[str, Tensor]) -> OsnetAinGenotype:
        """Reads out the most probable block at each place; of equal ones the first."""
        return OsnetAinGenotype.of_blocks(
            [OSNET_BLOCKS[column] for column in probabilities[GROUP].argmax(-1).tolist()]
        )

    def random_genotype(self, rng: np.random.Generator) -> OsnetAinGenotype:
        """Samples one of the 4,096 genotypes."""
        return OsnetAinGenotype.of_blocks([OSNET_BLOCKS[index] for index in rng.integers(4, size=6)])

    def path(self, genotype: OsnetAinGenotype) -> Sample:
        """Returns the six blocks' columns."""
        return {GROUP: [OSNET_BLOCKS.index(block) for block in genotype.blocks]}

    def mutated(self, genotype: OsnetAinGenotype, rng: np.random.Generator) -> OsnetAinGenotype:
        """Returns a genotype with another block at one place."""
        blocks = list(genotype.blocks)
        place = int(rng.integers(len(blocks)))
        others = [block for block in OSNET_BLOCKS if block != blocks[place]]
        blocks[place] = others[int(rng.integers(len(others)))]
        return OsnetAinGenotype.of_blocks(blocks)

    def inherited(self, weights: Mapping[str, Tensor], genotype: OsnetAinGenotype) -> dict[str, Tensor]:
        """The chosen blocks' entries of a supernet's weights, and all shared ones, as the derived network has them."""
        chosen = dict(zip(_PLACES, genotype.blocks, strict=True))
        found = {}
        for name, value in weights.items():
            stage, block, *rest = name.split(".", 3)
            candidate = chosen.get(f"{stage}.{block}")
            if candidate is None:
                found[name] = value
            elif rest[0] == candidate:
                found[f"{stage}.{block}.{rest[1]}"] = value
        return found
