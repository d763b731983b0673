"""The `osnet_ain` space: where instance norm belongs in OSNet's six blocks (arXiv 1910.06827, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from autoreid.spaces.osnet_ain.derived import DerivedOSNet
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS, OsnetAinGenotype
from autoreid.spaces.osnet_ain.supernet import GROUP, OsnetAinSupernet
from autoreid.spaces.space import Choices, Sample, Space

#: The module names of the six blocks, in order.
_POSITIONS = tuple(f"{stage}.{block}" for stage in ("conv2", "conv3", "conv4") for block in (0, 1))


class OsnetAinSpace(Space):
    """One of four blocks at each of six positions: 4,096 networks."""

    genotype_type = OsnetAinGenotype
    network_type = DerivedOSNet

    def choices(self) -> dict[str, Choices]:
        """Return a single group with a row for each block, two for each of the three stages."""
        rows = tuple(f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in (1, 2))
        return {GROUP: Choices(rows, OSNET_BLOCKS)}

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Return the blocks that have instance norm."""
        return {"in_share": OSNET_BLOCKS[1:]}

    def build_supernet(self, num_identities: int) -> OsnetAinSupernet:
        """Build the supernet, with random weights from torch's generator."""
        recomputes = self.search.activation_checkpointing == "cell"
        return OsnetAinSupernet(self.search.osnet_ain.width, num_identities, recomputes)

    def genotype(self, probabilities: Mapping[str, Tensor]) -> OsnetAinGenotype:
        """Read the most probable block at each position. The first one wins a tie."""
        return OsnetAinGenotype.of_blocks(
            [OSNET_BLOCKS[column] for column in probabilities[GROUP].argmax(-1).tolist()]
        )

    def random_genotype(self, rng: np.random.Generator) -> OsnetAinGenotype:
        """Sample one of the 4,096 genotypes."""
        return OsnetAinGenotype.of_blocks([OSNET_BLOCKS[index] for index in rng.integers(4, size=6)])

    def path(self, genotype: OsnetAinGenotype) -> Sample:
        """Return the columns of the six blocks."""
        return {GROUP: [OSNET_BLOCKS.index(block) for block in genotype.blocks]}

    def mutated(self, genotype: OsnetAinGenotype, rng: np.random.Generator) -> OsnetAinGenotype:
        """Return a genotype with another block at one random position."""
        blocks = list(genotype.blocks)
        position = int(rng.integers(len(blocks)))
        others = [block for block in OSNET_BLOCKS if block != blocks[position]]
        blocks[position] = others[int(rng.integers(len(others)))]
        return OsnetAinGenotype.of_blocks(blocks)

    def inherited(self, weights: Mapping[str, Tensor], genotype: OsnetAinGenotype) -> dict[str, Tensor]:
        """Select the weights of the chosen blocks, and all weights that the blocks share."""
        chosen = dict(zip(_POSITIONS, genotype.blocks, strict=True))
        found = {}
        for name, value in weights.items():
            stage, block, *rest = name.split(".", 3)
            candidate = chosen.get(f"{stage}.{block}")
            if candidate is None:
                found[name] = value
            elif rest[0] == candidate:
                found[f"{stage}.{block}.{rest[1]}"] = value
        return found
