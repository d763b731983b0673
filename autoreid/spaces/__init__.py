"""Search spaces: for each a folder with its genotypes, supernet, derived networks and pictures.

A space is added by a folder, a line in `SPACES` and its settings in `autoreid.config`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from autoreid import models
from autoreid.config import Search
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
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **models.NETWORKS,
    "derived": ReidCellSpace.network_type,
}


def build_space(search: Search) -> Space:
    """The space that a config names."""
    return SPACES[search.space](search)


def build_model(name: str, num_identities: int, **options: Any) -> nn.Module:
    """Builds a fixed or derived network with fresh weights from torch's generator.

    Works as `autoreid.models.build_model`, and knows `derived` as well. In training mode a derived network may give
    an auxiliary head's logits after the other two outputs.

    Args:
        name: one of `NETWORKS`.
        num_identities: of the training set.
        options: of the network; for `derived` the path or JSON text of a `genotype`, and the options of its space's
            `network_type`.

    Raises:
        ConfigError: there is no such network or option, one is missing, or a value is out of range.
        DataError: the genotype cannot be read.
    """
    if name != "derived" or "genotype" not in options:
        return models.build_from(NETWORKS, name, num_identities, options)
    space = read_genotype(options["genotype"]).space
    name = f"derived ({space})"
    return models.build_from({name: SPACES[space].network_type}, name, num_identities, options)


def with_genotype_text(options: Mapping[str, Any]) -> dict[str, Any]:
    """A derived network's options with the genotype's text for its path, so that they need no other file."""
    return {**options, "genotype": str(read_genotype(options["genotype"]))}
