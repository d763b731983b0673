"""The cost of each choice of a space, from the costs of a few derived networks.

The cost of a network is modelled as a constant plus a cost for each of its choices, as in FBNet (arXiv 1812.03443) and
ProxylessNAS (arXiv 1812.00332). For parameters and MACs of the present spaces this is exact.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autoreid.config import Config
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.evaluation.latency import time_pass
from autoreid.models import Network, check_input_size, count_macs, count_parameters
from autoreid.spaces.build import build_derived
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import NOTHING, Choices, Sample, Space
from autoreid.training.precision import PassPrecision

#: Random genotypes from which it is estimated how often a network has each row.
_DRAWS = 1000
#: Random networks among those that are timed.
_RANDOM = 24
#: Passes that are not timed, and timed passes.
_WARM_UP, _ROUNDS = 3, 20


class CostTable(NamedTuple):
    """The costs of all choices.

    Attributes:
        base: the constant.
        costs: of each candidate, (E, O) float64 for each group; 0 for candidates that no genotype has.
        shares: how often a random network has each row, (E,) for each group.
        mean: the mean cost of random networks.
    """

    base: float
    costs: dict[str, Tensor]
    shares: dict[str, Tensor]
    mean: float

    def of(self, path: Sample) -> float:
        """Return the cost of a network from the candidates that form it."""
        chosen = (
            costs[row, column].item()
            for name, costs in self.costs.items()
            for row, column in enumerate(path[name])
            if column != NOTHING
        )
        return self.base + sum(chosen)


def costly_choices(space: Space) -> dict[str, Choices]:
    """Return the groups of choices that have costs: not families, which weigh what other groups choose."""
    return {name: group for name, group in space.choices().items() if group.family is None}


def genotype_of(space: Space, values: Mapping[str, Tensor]) -> Genotype:
    """Reads a genotype from values (E, O) of the groups that have costs; choices of the other groups are equal."""
    found = {name: torch.ones(group.shape) for name, group in space.choices().items()}
    return space.genotype(found | dict(values))


def one_hot(choices: Mapping[str, Choices], path: Sample) -> dict[str, Tensor]:
    """Return values (E, O) for each group: 1 for the candidates of a path, otherwise 0."""
    found = {name: torch.zeros(group.shape) for name, group in choices.items()}
    for name, values in found.items():
        for row, column in enumerate(path[name]):
            if column != NOTHING:
                values[row, column] = 1
    return found


@dataclass(frozen=True)
class CostMeter:
    """Measures derived networks of a search.

    Without `search.cost.options`, they have the sizes of the search: each option of the derived network that is named
    like a key of the space's section has the value of that key.
    """

    config: Config
    space: Space
    world: World

    @property
    def is_noisy(self) -> bool:
        """Whether a cost varies from one measurement to the next."""
        return self.config.search.cost.measure == "latency"

    def network(self, genotype: Genotype) -> Network:
        """Build the network of a genotype."""
        known = inspect.signature(self.space.network_type).parameters
        own = {key: value for key, value in self.config.search.space_section if key in known}
        try:
            return build_derived(1, genotype, **own | self.config.search.cost.options)
        except ConfigError as error:
            raise ConfigError(f"search.cost.options: {error}") from error

    def structure(self, genotype: Genotype) -> Hashable:
        """Return what modules the network has in each block, in any order.

        Networks of equal structure are taken to have equal costs.
        """
        with torch.device("meta"):
            network = self.network(genotype)
        return frozenset(Counter(_description(*named) for named in network.named_modules()).items())

    def costs(self, genotypes: Sequence[Genotype]) -> list[float]:
        """Measure networks in millions of parameters, GMACs or milliseconds, as the config says.

        Raises:
            ConfigError: the images are too small for a network with the sizes in `search.cost.options`.
        """
        data, measure = self.config.data, self.config.search.cost.measure
        with torch.device("meta"):
            shapes_only = [self.network(genotype) for genotype in genotypes]
        if measure == "parameters":
            return [count_parameters(network) / 1e6 for network in shapes_only]
        try:
            for network in shapes_only:
                check_input_size(network, data.height, data.width)
        except ConfigError as error:
            raise ConfigError(f"search.cost.options: {error}") from error
        if self.is_noisy:
            device = self.world.device
            networks = [self.network(genotype).to(device).eval() for genotype in genotypes]
            images = torch.zeros(1, 3, data.height, data.width, device=device)
            return latencies(networks, images, PassPrecision(self.config.training.precision, device))
        return [count_macs(network, data.height, data.width) / 1e9 for network in shapes_only]


def _description(name: str, module: nn.Module) -> tuple[str, str, str]:
    """A module's block in the network, its type, and its settings and shapes."""
    settings = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and isinstance(value, int | float | str | tuple)
    }
    shapes = {key: tuple(value.shape) for key, value in module.named_parameters(recurse=False)}
    return ".".join(name.split(".")[:2]), type(module).__qualname__, f"{settings} {shapes}"


def latencies(
    networks: Sequence[Callable[[Tensor], Any]], images: Tensor, precision: PassPrecision
) -> list[float]:
    """Return the time of a forward pass of each network in milliseconds.

    It is the shortest of several: other programs on the device can only add to it, and would change the median. The
    networks take turns, so that a change of the device's speed affects all of them.
    """
    times = np.zeros((_WARM_UP + _ROUNDS, len(networks)))
    with torch.no_grad(), precision.backends(), precision.autocast():
        for of_round in times:
            for place, network in enumerate(networks):
                of_round[place] = time_pass(partial(network, images), images.device)
    shortest: list[float] = times[_WARM_UP:].min(axis=0).tolist()
    return shortest


def build_table(space: Space, meter: CostMeter) -> CostTable:
    """Fit a table to networks that differ from a first one in one choice, and to networks of equal choices.

    Of networks that consist of the same modules, one is measured. Where measurements are noisy, random networks are
    added, because errors add up in networks that differ in many choices.
    """
    choices = costly_choices(space)
    genotypes = [
        _all_of(space, choices, place)
        for place in range(max(len(group.allowed) for group in choices.values()))
    ]
    for name, group in choices.items():
        first = group.allowed[0]
        for row in range(len(group.rows)):
            genotypes += [_with(space, choices, name, row, column) for column in group.allowed]
            # Where a network has some of the rows only, also with others of them.
            genotypes.append(_with(space, choices, name, row, first, prefers_last=True))
    if meter.is_noisy:
        rng = np.random.default_rng(1)
        genotypes += [space.random_genotype(rng) for _ in range(_RANDOM)]
    alike = [meter.structure(genotype) for genotype in genotypes]
    unique = dict(zip(alike, genotypes, strict=True))
    costs = dict(zip(unique, meter.costs(list(unique.values())), strict=True))
    paths = [space.path(genotype) for genotype in genotypes]
    base, fitted = fit_costs(choices, paths, [costs[structure] for structure in alike])
    shares = _shares(space, choices)
    means = [shares[name] @ fitted[name][:, group.allowed].mean(1) for name, group in choices.items()]
    return CostTable(base, fitted, shares, base + torch.stack(means).sum().item())


def fit_costs(
    choices: Mapping[str, Choices], paths: Sequence[Sample], wanted: Sequence[float]
) -> tuple[float, dict[str, Tensor]]:
    """Fit a constant and a cost for each candidate to the costs of networks, by least squares of minimum norm.

    Args:
        choices: the groups.
        paths: the candidates that form each network.
        wanted: the cost of each network.
    """
    counts = [
        torch.cat([values.flatten() for values in one_hot(choices, path).values()]).numpy() for path in paths
    ]
    present = np.column_stack([np.ones(len(paths)), np.stack(counts)])
    base, *others = np.linalg.lstsq(present, np.array(wanted), rcond=None)[0].tolist()
    sizes = [rows * columns for rows, columns in (group.shape for group in choices.values())]
    pieces = torch.tensor(others, dtype=torch.float64).split(sizes)
    costs = {
        name: piece.clone().view(choices[name].shape) for name, piece in zip(choices, pieces, strict=True)
    }
    return base, costs


def _column(group: Choices, place: int) -> int:
    return group.allowed[min(place, len(group.allowed) - 1)]


def _all_of(space: Space, choices: Mapping[str, Choices], place: int) -> Genotype:
    """A network with the same candidate on all rows of a group."""
    path = {name: [_column(group, place)] * len(group.rows) for name, group in choices.items()}
    return genotype_of(space, one_hot(choices, path))


def _with(
    space: Space,
    choices: Mapping[str, Choices],
    name: str,
    row: int,
    column: int,
    prefers_last: bool = False,
) -> Genotype:
    """The network that has a candidate on one row, and the first one on others: the first or the last of them."""
    values = {}
    for other, group in choices.items():
        rows = len(group.rows)
        values[other] = torch.zeros(group.shape)
        values[other][:, group.allowed[0]] = torch.linspace(1, 2, rows) if prefers_last else torch.ones(rows)
    values[name][row] = 0
    values[name][row, column] = 3
    return genotype_of(space, values)


def _shares(space: Space, choices: Mapping[str, Choices]) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    paths = [space.path(space.random_genotype(rng)) for _ in range(_DRAWS)]
    return {
        name: (torch.tensor([path[name] for path in paths]) != NOTHING).double().mean(0) for name in choices
    }
