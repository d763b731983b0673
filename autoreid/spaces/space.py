"""What every search space offers, so that nothing outside its folder has to ask which space it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from autoreid.config import Search
from autoreid.errors import DataError
from autoreid.spaces.drawing import Drawing
from autoreid.spaces.genotype import Genotype


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


class Derived(nn.Module, ABC):
    """The network that a genotype describes; it is built from the number of identities and options.

    Attributes:
        genotype: what it was built from.
    """

    genotype: Genotype

    @abstractmethod
    def drawing(self, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
        """Describes the network's picture.

        Args:
            shapes: C × H × W of what each module gives, by its name; of the images under "".
            caption: what the network is called.
            size: its parameters and multiply-accumulates.
        """


class Space(ABC):
    """What can be chosen, the supernet that mixes it, and how a choice is read.

    Attributes:
        genotype_type: class of the space's genotypes.
        network_type: class of the networks that they describe.
    """

    genotype_type: ClassVar[type[Genotype]]
    network_type: ClassVar[type[Derived]]

    def __init__(self, search: Search) -> None:
        self.search = search

    @abstractmethod
    def choices(self) -> dict[str, Choices]:
        """The groups of alphas, by name."""

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Return candidates whose share of the mixture is worth a curve, by the name of the curve; by default none."""
        return {}

    @abstractmethod
    def build_supernet(self, num_identities: int) -> nn.Module:
        """The supernet, with fresh weights from torch's generator.

        It is called with images (B, 3, H, W) and mixing weights by group: (E, O), or (E,) int64, the column of the
        one candidate that counts in each row, whose others are then not computed. It gives the embedding (B, D)
        before the neck and logits (B, identities), in training and in evaluation.
        """

    @abstractmethod
    def genotype(self, probabilities: Mapping[str, Tensor]) -> Genotype:
        """Reads out the most probable choices from (E, O) a group; equal ones are ranked by position."""

    def has_collapsed(self, genotype: Any) -> bool:  # noqa: ARG002
        """Return whether the search should stop because its genotype is degenerate; by default never."""
        return False

    def inherited(self, weights: Mapping[str, Tensor], genotype: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the weights of a supernet that a genotype's derived network also has, by the network's names.

        Raises:
            DataError: the network cannot start from them; by default always.
        """
        raise DataError("networks of this space cannot start from the weights of a search; train from none")
