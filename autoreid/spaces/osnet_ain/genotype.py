"""The genotype of the `osnet_ain` space: one of four blocks at each of six positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from autoreid.spaces.drawing import Drawing
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.osnet_ain.drawing import blocks_drawing

#: The candidate blocks, in the order of the alphas' columns. They differ in where they have instance norm.
OSNET_BLOCKS = ("plain", "in_inside", "in_after", "in_both")


_Block = Literal[OSNET_BLOCKS]  # type: ignore[valid-type]
_Stage = tuple[_Block, _Block]


class OsnetAinGenotype(Genotype):
    """Where the six blocks of OSNet have instance norm.

    Attributes:
        stages: three stages of two blocks, each one of `OSNET_BLOCKS`.
    """

    space: Literal["osnet_ain"] = "osnet_ain"
    stages: tuple[_Stage, _Stage, _Stage]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The six blocks in order."""
        return tuple(block for stage in self.stages for block in stage)

    @classmethod
    def of_blocks(cls, blocks: Sequence[str]) -> OsnetAinGenotype:
        """Build the genotype of six blocks, given in order."""
        return cls(stages=tuple(zip(blocks[::2], blocks[1::2], strict=True)))  # type: ignore[arg-type]

    def drawings(self, caption: str) -> dict[str, Drawing]:
        """Return the drawing of all blocks."""
        return {"blocks": blocks_drawing(self.stages, caption)}

    def sample_like(self, rng: np.random.Generator) -> OsnetAinGenotype:
        """Sample one of the 4⁶ genotypes uniformly."""
        return self.of_blocks([OSNET_BLOCKS[index] for index in rng.integers(len(OSNET_BLOCKS), size=6)])
