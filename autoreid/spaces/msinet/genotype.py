"""The genotype of the `msinet` space: one of four interactions at two places in each of six cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from autoreid.spaces.drawing import Drawing
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.msinet.drawing import cells_drawing

#: The candidate interactions, in the order of the alphas' columns, with the authors' names.
INTERACTIONS = ("none", "ag", "cross_att", "exc")

#: Cells, and choices in all of them.
CELLS, CHOICES = 6, 12

_Interaction = Literal[INTERACTIONS]  # type: ignore[valid-type]
_Cell = tuple[_Interaction, _Interaction]


class MsinetGenotype(Genotype):
    """How the two branches of each cell interact.

    Attributes:
        cells: the first and the second interaction of each of the six cells, each one of `INTERACTIONS`.
    """

    space: Literal["msinet"] = "msinet"
    cells: tuple[_Cell, _Cell, _Cell, _Cell, _Cell, _Cell]

    @property
    def interactions(self) -> tuple[str, ...]:
        """The twelve interactions in order."""
        return tuple(name for cell in self.cells for name in cell)

    @classmethod
    def of_interactions(cls, names: Sequence[str]) -> MsinetGenotype:
        """Build the genotype of twelve interactions, given in order."""
        return cls(cells=tuple(zip(names[::2], names[1::2], strict=True)))  # type: ignore[arg-type]

    def drawings(self, caption: str) -> dict[str, Drawing]:
        """Return the drawing of all cells."""
        return {"cells": cells_drawing(self.cells, caption)}

    def sample_like(self, rng: np.random.Generator) -> MsinetGenotype:
        """Sample one of the 4¹² genotypes uniformly."""
        return random_genotype(rng)


def random_genotype(rng: np.random.Generator) -> MsinetGenotype:
    """Sample one of the 4¹² genotypes uniformly."""
    columns = rng.integers(len(INTERACTIONS), size=CHOICES)
    return MsinetGenotype.of_interactions([INTERACTIONS[column] for column in columns])


#: The genotype that the authors found on MSMT17.
PUBLISHED = MsinetGenotype(
    cells=(
        ("ag", "ag"),
        ("exc", "ag"),
        ("cross_att", "ag"),
        ("ag", "none"),
        ("ag", "cross_att"),
        ("exc", "cross_att"),
    )
)
