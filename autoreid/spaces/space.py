"""The interface of a search space. Code outside of a space's folder uses nothing else of it."""

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

#: The mixing weights of all candidates: (E, O) for each group of choices, by the name of the group.
Mixing = Mapping[str, Tensor]
#: The column of one candidate for each row of each group, or NOTHING for none. Other candidates are not computed.
Sample = Mapping[str, Sequence[int]]
NOTHING = -1


class Choices(NamedTuple):
    """A group of alphas, (E, O).

    Attributes:
        rows: names of the E choices, for plots.
        columns: names of the O candidates, which are the same for all choices.
        family: groups with the same family share their curves in plots. With None, the group has separate curves.
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
    """A network that contains all networks of a space, with shared weights."""

    @abstractmethod
    def forward(
        self, images: Tensor, mixing: Mixing | None = None, sample: Sample | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images (B, 3, H, W) with a mixture of all candidates, or with one candidate for each choice.

        At least one of `mixing` and `sample` must be given.

        Args:
            mixing: the mixing weights.
            sample: the candidates to compute. Their weights are those in `mixing`, or 1 without it.

        Returns:
            In training mode, the embedding (B, D) before the neck and the logits (B, identities). In evaluation mode,
            the embedding that is used for ranking, as in derived networks.
        """


class Derived(Network):
    """The network that a genotype describes.

    Its constructor takes the number of identities, the genotype, and options.

    Attributes:
        genotype: the genotype.
    """

    genotype: Genotype

    @abstractmethod
    def drawing(self, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
        """Return a drawing of the network.

        Args:
            shapes: the output shape of each module as text, C × H × W, by the module's name; that of the images under
                "".
            caption: the name of the network.
            size: the number of its parameters and multiply-accumulates as text.
        """


class Space(ABC):
    """A search space: the choices, the supernet, and how a genotype is read from the alphas.

    Attributes:
        network_type: class of the derived networks.
    """

    network_type: ClassVar[type[Derived]]

    def __init__(self, search: Search) -> None:
        self.search = search

    @abstractmethod
    def choices(self) -> dict[str, Choices]:
        """Return the groups of alphas by name."""

    def watched(self) -> dict[str, tuple[str, ...]]:
        """Return candidates whose total share of the mixture is plotted, by the name of the curve; by default none."""
        return {}

    @abstractmethod
    def build_supernet(self, num_identities: int) -> Supernet:
        """Build the supernet, with random weights from torch's generator."""

    @abstractmethod
    def genotype(self, probabilities: Mapping[str, Tensor]) -> Genotype:
        """Read the most probable candidates from the probabilities (E, O) of each group. The first one wins a tie."""

    def random_genotype(self, rng: np.random.Generator) -> Genotype:  # noqa: ARG002
        """Sample a genotype uniformly from those that this search could find.

        Raises:
            ConfigError: the space cannot sample networks, which is the default; `path` and `mutated` raise it too.
        """
        raise self._no_samples()

    def path(self, genotype: Any) -> Sample:  # noqa: ARG002
        """Return the candidates of the supernet that form the network of a genotype."""
        raise self._no_samples()

    def mutated(self, genotype: Any, rng: np.random.Generator) -> Genotype:  # noqa: ARG002
        """Return a copy of a genotype with one random choice changed."""
        raise self._no_samples()

    def _no_samples(self) -> ConfigError:
        return ConfigError(
            f"search.space: {self.search.space} cannot sample networks, as studies, --random, search.cost and "
            f"search.relaxation: uniform and fair do"
        )

    def has_collapsed(self, genotype: Any) -> bool:  # noqa: ARG002
        """Return whether the search should stop because its genotype is degenerate; by default never."""
        return False

    def inherited(self, weights: Mapping[str, Tensor], genotype: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """Select the weights that a genotype's derived network inherits from a supernet.

        Args:
            weights: the state dict of the supernet.

        Returns:
            The weights, with their names in the derived network.

        Raises:
            DataError: the derived network cannot use the weights of this supernet; by default always.
        """
        raise DataError(
            "networks of this space cannot inherit the weights of a search; train from random weights"
        )
