"""What every space that can be searched offers; the search itself never asks which one it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from autoreid.search.genotype import AnyGenotype


class Choices(NamedTuple):
    """A group of alphas, (E, O).

    Attributes:
        rows: a name for each of the E things to decide, for plots.
        columns: the O candidates, the same for each row.
        family: of groups that curves and signs show together; None for a group by itself.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    family: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(E, O)."""
        return len(self.rows), len(self.columns)


class Space(Protocol):
    """What can be chosen, the supernet that mixes it, and how a choice is read."""

    def choices(self) -> dict[str, Choices]:
        """The groups of alphas, by name."""

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Candidates whose share of the mixture tells of a search, under a name for the curve."""

    def build_supernet(self, num_identities: int) -> nn.Module:
        """The supernet, with fresh weights from torch's generator.

        It is called with images (B, 3, H, W) and mixing weights by group: (E, O), or (E,) int64, the column of the
        one candidate that counts in each row, whose others are then not computed. It gives the embedding (B, D)
        before the neck and logits (B, identities), in training and in evaluation.
        """

    def genotype(self, probabilities: Mapping[str, Tensor]) -> AnyGenotype:
        """Reads out the most probable choices from (E, O) a group; equal ones are ranked by position."""

    def has_collapsed(self, genotype: Any) -> bool:
        """Whether the search should stop here, because what it found is degenerate."""

    def inherited(self, weights: Mapping[str, Tensor], genotype: Any) -> dict[str, Tensor]:
        """The entries of a supernet's weights that a genotype's derived network has too, by its names for them.

        Raises:
            DataError: the derived network has none of them.
        """
