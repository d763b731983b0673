"""Networks that embed images of people, their sizes and their weights."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from autoreid.errors import ConfigError
from autoreid.models.last_map import LastMap
from autoreid.models.mgn import MGN
from autoreid.models.network import Network
from autoreid.models.osnet import OSNet
from autoreid.models.pcb import PCB
from autoreid.models.resnet import ReidResNet
from autoreid.models.summary import OutputSizes, check_input_size, count_macs, count_parameters, output_sizes
from autoreid.models.weights import LoadReport, load_weights

__all__ = [
    "NETWORKS",
    "LastMap",
    "LoadReport",
    "Network",
    "OutputSizes",
    "build_from",
    "check_input_size",
    "count_macs",
    "count_parameters",
    "load_weights",
    "output_sizes",
]

_PLAIN = ("plain",) * 6
_IBN = ("in_after", "in_after", "plain", "plain", "plain", "plain")
_AIN = ("in_inside", "in_inside", "plain", "in_inside", "in_inside", "plain")

#: Fixed networks by name; each takes the number of identities and its own options.
NETWORKS: dict[str, Callable[..., Network]] = {
    "resnet50": partial(ReidResNet, 50, False),
    "resnet101": partial(ReidResNet, 101, False),
    "resnet50_ibn_a": partial(ReidResNet, 50, True),
    "resnet101_ibn_a": partial(ReidResNet, 101, True),
    "pcb": PCB,
    "mgn": MGN,
    "osnet_x1_0": partial(OSNet, _PLAIN, False, 1.0),
    "osnet_x0_75": partial(OSNet, _PLAIN, False, 0.75),
    "osnet_x0_5": partial(OSNet, _PLAIN, False, 0.5),
    "osnet_x0_25": partial(OSNet, _PLAIN, False, 0.25),
    "osnet_ibn_x1_0": partial(OSNet, _IBN, True, 1.0),
    "osnet_ain_x1_0": partial(OSNet, _AIN, True, 1.0),
    "osnet_ain_x0_75": partial(OSNet, _AIN, True, 0.75),
    "osnet_ain_x0_5": partial(OSNet, _AIN, True, 0.5),
    "osnet_ain_x0_25": partial(OSNet, _AIN, True, 0.25),
}


def build_from(
    networks: Mapping[str, Callable[..., Network]],
    name: str,
    num_identities: int,
    options: Mapping[str, Any],
) -> Network:
    """Build a network by name, with newly initialised weights.

    Args:
        networks: functions or classes that take the number of identities and the network's own options. The options of
            one with ``**options`` are not checked here.
        name: a key of `networks`.
        num_identities: number of identities in the training set, 1 or more.
        options: the network's own options by name.

    Raises:
        ConfigError: the network or an option is unknown, an option is missing, or a value is out of range.
    """
    if name not in networks:
        nearest = difflib.get_close_matches(name, networks, n=1, cutoff=0)[0]
        raise ConfigError(
            f"unknown network {name!r}; did you mean {nearest}? Available networks: {', '.join(networks)}"
        )
    if num_identities < 1:
        raise ConfigError(f"{name}: num_identities = {num_identities}: must be at least 1")
    build = networks[name]
    parameters = [p for p in inspect.signature(build).parameters.values() if p.name != "num_identities"]
    known = {p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD}
    unknown = next((option for option in options if option not in known), None)
    if unknown is not None and len(known) == len(parameters):
        raise ConfigError(f"{name} has no option {unknown!r}; its options are: {', '.join(known) or 'none'}")
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ConfigError(f"{name} requires the option {option!r}; its options are: {', '.join(known)}")
    return build(num_identities, **options)
