"""The genotype of the `osnet_ain` space: one of four blocks at each of six positions, and the norm of the stem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import SerializerFunctionWrapHandler, model_serializer

from autoreid.spaces.drawing import Drawing
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.osnet_ain.drawing import blocks_drawing

#: The candidate blocks, in the order of the alphas' columns. They differ in where they have instance norm.
OSNET_BLOCKS = ("plain", "in_inside", "in_after", "in_both")
#: The norms after the first convolution, in the order of the alphas' columns.
STEM_NORMS = ("batch_norm", "instance_norm")
#: The published one, which genotypes need not name.
PUBLISHED_STEM = "instance_norm"

_Block = Literal[OSNET_BLOCKS]  # type: ignore[valid-type]
_Stage = tuple[_Block, _Block]


class OsnetAinGenotype(Genotype):
    """Where the six blocks of OSNet have instance norm.

    Attributes:
        stages: three stages of two blocks, each one of `OSNET_BLOCKS`.
        stem: the norm after the first convolution, one of `STEM_NORMS`.
    """

    space: Literal["osnet_ain"] = "osnet_ain"
    stages: tuple[_Stage, _Stage, _Stage]
    stem: Literal[STEM_NORMS] = PUBLISHED_STEM  # type: ignore[valid-type]

    @model_serializer(mode="wrap")
    def _leave_out_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The text of a genotype with the published stem is the same as before there was a choice."""
        content: dict[str, Any] = handler(self)
        if self.stem == PUBLISHED_STEM:
            content.pop("stem", None)
        return content

    @property
    def blocks(self) -> tuple[str, ...]:
        """The six blocks in order."""
        return tuple(block for stage in self.stages for block in stage)

    @classmethod
    def of_blocks(cls, blocks: Sequence[str], stem: str = PUBLISHED_STEM) -> OsnetAinGenotype:
        """Build the genotype of six blocks, given in order."""
        return cls(stages=tuple(zip(blocks[::2], blocks[1::2], strict=True)), stem=stem)  # type: ignore[arg-type]

    def drawings(self, caption: str) -> dict[str, Drawing]:
        """Return the drawing of all blocks."""
        return {"blocks": blocks_drawing(self.stages, self.stem == "instance_norm", caption)}

    def sample_like(self, rng: np.random.Generator) -> OsnetAinGenotype:
        """Sample one of the 4⁶ genotypes with the same stem uniformly."""
        blocks = [OSNET_BLOCKS[index] for index in rng.integers(len(OSNET_BLOCKS), size=6)]
        return self.of_blocks(blocks, self.stem)
