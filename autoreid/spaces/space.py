"""The interface of a search space: code outside its folder never depends on which space it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from autoreid.config import Search
from autoreid.models.network import Network
from autoreid.spaces.drawing import Drawing
from autoreid.spaces.genotype import Genotype

#: Mixing weights of all candidates, (E, O) for each group of choices.
Mixing = Mapping[str, Tensor]
#: One candidate for each row of each group, by its column: the others are not computed.
Sample = Mapping[str, Sequence[int]]


class Choices(NamedTuple):
    """A group of alphas, (E, O).

    Attributes:
        rows: a name for each of the E decisions, for plots.
        columns: the O candidates, which are the same in each row.
        family: groups of one family share their curves; None if the group has its own.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    family: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(E, O)."""
        return len(self.rows), len(self.columns)


class Supernet(Network):
    """All networks of a space in one, whose weights they share."""

    @abstractmethod
    def forward(
        self, images: Tensor, mixing: Mixing | None = None, sample: Sample | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embeds images (B, 3, H, W) with a mixture of all candidates, or with one candidate for each choice.

        Args:
            mixing: the weights of the mixture. Give either this or `sample`.
            sample: the candidates to compute.

        Returns:
            In training mode the embedding (B, D) before the neck and logits (B, identities), in evaluation mode the
            embedding.
        """


class Derived(Network):
    """The network that a genotype describes. It is built from the number of identities, a genotype and options.

    Attributes:
        genotype: the genotype that it was built from.
    """

    genotype: Genotype

    @abstractmethod
    def drawing(self, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
        """Describes the picture of the network.

        Args:
            shapes: C × H × W of the output of each module, by the module's name; of the images under "".
            caption: the name of the network.
            size: its parameters and multiply-accumulates.
        """


class Space(ABC):
    """A search space: the choices, the supernet, and how a genotype is read from the alphas.

    Attributes:
        genotype_type: class of the space's genotypes.
        network_type: class of the derived networks.
    """

    genotype_type: ClassVar[type[Genotype]]
    network_type: ClassVar[type[Derived]]

    def __init__(self, search: Search) -> None:
        self.search = search

    @abstractmethod
    def choices(self) -> dict[str, Choices]:
        """Returns the groups of alphas by name."""

    @abstractmethod
    def watched(self) -> dict[str, tuple[str, ...]]:
        """Returns candidates whose share of the mixture is worth a curve, by the name of the curve."""

    @abstractmethod
    def build_supernet(self, num_identities: int) -> Supernet:
        """Builds the supernet with fresh weights from torch's generator."""

    @abstractmethod
    def genotype(self, probabilities: Mapping[str, Tensor]) -> Genotype:
        """Reads the most probable choices from (E, O) for each group; of equal ones, the first in order."""

    @abstractmethod
    def has_collapsed(self, genotype: Any) -> bool:
        """Returns whether the search should stop because the genotype is degenerate."""

    @abstractmethod
    def inherited(self, weights: Mapping[str, Tensor], genotype: Any) -> dict[str, Tensor]:
        """Selects the weights of a supernet that a genotype's derived network has too, by the network's names.

        Raises:
            DataError: the derived network cannot use this supernet's weights.
        """
