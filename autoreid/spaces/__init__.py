"""Search spaces: for each a folder with its genotypes, supernet, derived networks and pictures.

A space is added by a folder, a line in `SPACES` and its settings in `autoreid.config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autoreid import models
from autoreid.config import Search
from autoreid.models import Network
from autoreid.spaces.genotype import Genotype, read_genotype
from autoreid.spaces.osnet_ain.space import OsnetAinSpace
from autoreid.spaces.reid_cell.space import ReidCellSpace
from autoreid.spaces.space import Choices, Derived, Space

__all__ = [
    "NETWORKS",
    "SPACES",
    "Choices",
    "Derived",
    "Genotype",
    "Space",
    "build_model",
    "build_space",
    "read_genotype",
    "with_genotype_text",
]

#: Every space by name.
SPACES: dict[str, type[Space]] = {"reid_cell": ReidCellSpace, "osnet_ain": OsnetAinSpace}

#: Every network by name: the fixed ones, and `derived`, which is of the class that its genotype's space says.
NETWORKS: dict[str, Callable[..., Network]] = {
    **models.NETWORKS,
    "derived": ReidCellSpace.network_type,
}


def build_space(search: Search) -> Space:
    """The space that a config names."""
    return SPACES[search.space](search)


def build_model(name: str, num_identities: int, **options: Any) -> Network:
    """Builds a fixed or derived network with fresh weights from torch's generator.

    Works like `autoreid.models.build_model`, and also knows the network `derived`.

    Args:
        name: one of `NETWORKS`.
        num_identities: number of identities in the training set.
        options: of the network. `derived` takes a `genotype`, which is a `Genotype`, the path of its file or its JSON
            text, and the options of its space's `network_type`.

    Raises:
        ConfigError: there is no such network or option, one is missing, or a value is out of range.
        DataError: the genotype cannot be read.
    """
    if name != "derived" or "genotype" not in options:
        return models.build_from(NETWORKS, name, num_identities, options)
    genotype = options["genotype"]
    if not isinstance(genotype, Genotype):
        genotype = read_genotype(genotype)
    name = f"derived ({genotype.space})"
    network_type = SPACES[genotype.space].network_type
    return models.build_from({name: network_type}, name, num_identities, options | {"genotype": genotype})


def with_genotype_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the path of a derived network's genotype by its text, so that the options need no other file."""
    return {**options, "genotype": str(read_genotype(options["genotype"]))}
