"""Search spaces: each has a folder with its genotype, supernet, derived network and drawings.

To add a space, add a folder here, a line to `SPACES`, and its settings to `autoreid.config`.
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

#: All spaces by name.
SPACES: dict[str, type[Space]] = {"reid_cell": ReidCellSpace, "osnet_ain": OsnetAinSpace}

#: All networks by name: the fixed networks, and `derived`. The class of `derived` depends on its genotype; the class
#: given here is only used to report that the genotype is missing.
NETWORKS: dict[str, Callable[..., Network]] = {
    **models.NETWORKS,
    "derived": ReidCellSpace.network_type,
}


def build_space(search: Search) -> Space:
    """Build the space that the config names."""
    return SPACES[search.space](search)


def build_model(name: str, num_identities: int, **options: Any) -> Network:
    """Build a fixed or derived network, with random weights from torch's generator.

    Like `autoreid.models.build_model`, but also builds the network `derived`.

    Args:
        name: one of `NETWORKS`.
        num_identities: number of identities in the training set.
        options: options of the network. `derived` requires a `genotype`: a `Genotype`, the path of a genotype file or
            its JSON text. Its other options are those of the space's `network_type`.

    Raises:
        ConfigError: the network or an option does not exist, an option is missing, or a value is out of range.
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
    """Replace the path of a genotype by its JSON text, so that the options no longer depend on a file."""
    return {**options, "genotype": str(read_genotype(options["genotype"]))}
