"""All search spaces and networks by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from autoreid import models
from autoreid.config import Search
from autoreid.models import Network
from autoreid.models.timm_network import TIMM, TimmNetwork
from autoreid.spaces.genotype import Genotype, read_genotype
from autoreid.spaces.msinet.derived import msinet_x1_0
from autoreid.spaces.msinet.space import MsinetSpace
from autoreid.spaces.osnet_ain.space import OsnetAinSpace
from autoreid.spaces.reid_cell.space import ReidCellSpace
from autoreid.spaces.space import Space

#: All spaces by name.
SPACES: dict[str, type[Space]] = {
    "reid_cell": ReidCellSpace,
    "osnet_ain": OsnetAinSpace,
    "msinet": MsinetSpace,
}


def build_space(search: Search) -> Space:
    """Build the space that the config names."""
    return SPACES[search.space](search)


def build_derived(num_identities: int, genotype: str | Genotype, **options: Any) -> Network:
    """Build the network that a genotype describes.

    Args:
        num_identities: number of identities in the training set.
        genotype: a `Genotype`, the path of a genotype file, or its JSON text.
        options: options of the `network_type` of the genotype's space.

    Raises:
        ConfigError: an option does not exist, or a value is out of range.
        DataError: the genotype cannot be read.
    """
    if not isinstance(genotype, Genotype):
        genotype = read_genotype(genotype)
    name, network_type = f"derived ({genotype.space})", SPACES[genotype.space].network_type
    return models.build_from({name: network_type}, name, num_identities, options | {"genotype": genotype})


#: All networks by name: the fixed networks, and `derived`.
NETWORKS: dict[str, Callable[..., Network]] = {
    **models.NETWORKS,
    "msinet_x1_0": msinet_x1_0,
    "derived": build_derived,
}


def build_model(name: str, num_identities: int, **options: Any) -> Network:
    """Build a network, with random weights from torch's generator.

    See `autoreid.models.Network` for what it returns.

    Args:
        name: one of `NETWORKS`, such as "resnet50", "pcb", "osnet_x1_0" or "derived"; or the name of a network of timm
            with the prefix "timm:".
        num_identities: number of identities in the training set.
        options: options of the network, such as `last_stride` of resnet50, `parts` of pcb or `genotype` of derived.

    Raises:
        ConfigError: the network or an option does not exist, an option is missing, or a value is out of range.
        DataError: the genotype cannot be read.
    """
    networks = NETWORKS
    if name.startswith(TIMM):
        networks = {name: partial(TimmNetwork, name.removeprefix(TIMM))}
    return models.build_from(networks, name, num_identities, options)
