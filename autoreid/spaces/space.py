"""The interface of a search space: code outside its folder never depends on which space it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from autoreid.config import Search
from autoreid.errors import ConfigError, DataError
from autoreid.models.network import Network
from autoreid.spaces.drawing import Drawing
from autoreid.spaces.genotype import Genotype

#: Mixing weights of all candidates, (E, O) for each group of choices.
Mixing = Mapping[str, Tensor]
#: One candidate for each row of each group, by its column; NOTHING leaves the row out. Others are not computed.
Sample = Mapping[str, Sequence[int]]
NOTHING = -1


class Choices(NamedTuple):
    """A group of alphas, (E, O).

    Attributes:
        rows: a name for each of the E decisions, for plots.
        columns: the O candidates, which are the same in each row.
        family: groups of one family share their curves; None if the group has its own.
        never_chosen: candidates that take a share of the mixture but are not part of any genotype.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    family: str | None = None
    never_chosen: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(E, O)."""
        return len(self.rows), len(self.columns)

    @property
    def allowed(self) -> list[int]:
        """Columns of the candidates that a genotype may have."""
        return [column for column, name in enumerate(self.columns) if name not in self.never_chosen]


class Supernet(Network):
    """All networks of a space in one, whose weights they share."""

    @abstractmethod
    def forward(
        self, images: Tensor, mixing: Mixing | None = None, sample: Sample | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embeds images (B, 3, H, W) with a mixture of all candidates, or with one candidate for each choice.

        Args:
            mixing: the weights of the mixture.
            sample: the candidates to compute. Their weights are 1 without `mixing`, otherwise those in `mixing`.

        Returns:
            In training mode the embedding (B, D) before the neck and logits (B, identities). In evaluation mode the
            embedding that is ranked, which is the one that derived networks rank.
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

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Returns candidates whose share of the mixture is worth a curve, by the name of the curve; by default none."""
        return {}

    @abstractmethod
    def build_supernet(self, num_identities: int) -> Supernet:
        """Builds the supernet with fresh weights from torch's generator."""

    @abstractmethod
    def genotype(self, probabilities: Mapping[str, Tensor]) -> Genotype:
        """Reads the most probable choices from (E, O) for each group; of equal ones, the first in order."""

    def random_genotype(self, rng: np.random.Generator) -> Genotype:  # noqa: ARG002
        """Samples a genotype uniformly from those that this search could find.

        Raises:
            ConfigError: the space cannot sample networks, which is the default; `path` and `mutated` raise it too.
        """
        raise self._no_samples()

    def path(self, genotype: Any) -> Sample:  # noqa: ARG002
        """Returns the candidates of the supernet that form a genotype's network."""
        raise self._no_samples()

    def mutated(self, genotype: Any, rng: np.random.Generator) -> Genotype:  # noqa: ARG002
        """Returns a genotype with one choice changed at random."""
        raise self._no_samples()

    def _no_samples(self) -> ConfigError:
        return ConfigError(
            f"search.space: {self.search.space} cannot sample networks: search.relaxation must not be uniform or fair"
        )

    def has_collapsed(self, genotype: Any) -> bool:  # noqa: ARG002
        """Returns whether the search should stop because its genotype is degenerate; by default never."""
        return False

    def inherited(self, weights: Mapping[str, Tensor], genotype: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Returns the weights of a supernet that a genotype's derived network also has, by the network's names.

        Raises:
            DataError: the network cannot start from them; by default always.
        """
        raise DataError("networks of this space cannot start from the weights of a search; train from none")
