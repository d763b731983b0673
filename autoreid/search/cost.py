"""The cost of the derived network in a search: a term of the alphas' loss, and a limit on what is read out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autoreid.config import Config
from autoreid.distributed import World, on_main
from autoreid.errors import ConfigError
from autoreid.search.alphas import Alphas
from autoreid.search.cost_table import (
    CostMeter,
    CostTable,
    build_table,
    costly_choices,
    genotype_of,
    one_hot,
)
from autoreid.search.relaxations import Relaxation
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import NOTHING, Sample, Space

_log = logging.getLogger(__name__)

#: The unit of each measure.
UNITS = {"parameters": "M parameters", "macs": "GMACs", "latency": "ms"}


class SearchCost:
    """The costs of a search's networks, as `search.cost` asks for them.

    All ranks have the table of rank 0, which is measured before the first step and saved in checkpoints.
    """

    def __init__(self, config: Config, space: Space, world: World) -> None:
        self.config, self.space, self.world = config, space, world
        self.settings = config.search.cost
        self._table: CostTable | None = None
        self._choices = costly_choices(space)

    def measure(self) -> None:
        """Measure the table if there is none yet; all ranks call it together.

        Raises:
            ConfigError: an option of the derived network is wrong, or the cheapest network exceeds the limit.
        """
        if self._table is not None:
            return
        self._table = on_main(self._measured)
        cheapest, unit = self.cheapest(), UNITS[self.settings.measure]
        least, mean = self.of(cheapest), self.table.mean
        _log.info("cost: random networks have %.4g %s on average, the cheapest has %.4g", mean, unit, least)
        if not self.fits(cheapest):
            raise ConfigError(
                f"search.cost.limit: {self.settings.limit} is too low: the cheapest network has {least:.4g} {unit}"
            )
        if mean - least < 1e-9 * mean:
            _log.warning("cost: all networks have equal %s, so that search.cost changes nothing", unit)

    @property
    def table(self) -> CostTable:
        """The costs of all choices; only after `measure`."""
        assert self._table is not None  # noqa: S101
        return self._table

    def state_dict(self) -> dict[str, Any]:
        """Return the table as plain values and tensors."""
        return {} if self._table is None else self._table._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a table."""
        self._table = CostTable(**state) if state else None
        self.__dict__.pop("_terms", None)

    def expected(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Compute the expected cost (), differentiable in the probabilities (E, O).

        Only candidates that a genotype may have count: otherwise `none` would lower the cost of the mixture, but not
        that of the derived network. Equal probabilities give the mean cost of random genotypes.
        """
        totals = []
        for name, (costs_EA, allowed_A) in self._terms.items():
            values = probabilities[name].index_select(1, allowed_A)
            totals.append((costs_EA * values / values.sum(1, keepdim=True)).sum())
        return torch.stack(totals).sum() + self.table.base

    def gradients(self, alphas: Alphas, relaxation: Relaxation) -> list[Tensor]:
        """Compute the gradient of weight · expected cost / mean cost of random genotypes, for each parameter."""
        with torch.enable_grad():
            value = self.settings.weight / self.table.mean * self.expected(relaxation.distribution(alphas))
            return list(torch.autograd.grad(value, list(alphas.parameters()), materialize_grads=True))

    def of(self, genotype: Genotype) -> float:
        """Return the cost of a genotype's network, in the unit of the measure."""
        return self.table.of(self.space.path(genotype))

    def fits(self, genotype: Genotype) -> bool:
        """Return whether a genotype does not exceed the limit."""
        limit = self.settings.limit
        # Costs are fitted, up to rounding.
        return limit is None or self.of(genotype) <= limit * (1 + 1e-9)

    def within_limit(self, genotype: Genotype, scores: Mapping[str, Tensor]) -> Genotype:
        """Return a genotype that does not exceed the limit, with a small loss of score.

        As long as it exceeds it, one choice is changed: the one that loses the least score for each unit that is
        saved. If that does not suffice, the cheapest network of the space is returned.

        Args:
            genotype: the one with the best scores.
            scores: (E, O), such as logarithms of probabilities; the score of a genotype is the sum over its choices.
        """
        while not self.fits(genotype):
            path = {name: list(columns) for name, columns in self.space.path(genotype).items()}
            change = self._best_change(path, scores)
            if change is None:
                return self.cheapest()
            name, row, column = change
            path[name][row] = column
            genotype = genotype_of(self.space, one_hot(self._choices, path))
        return genotype

    def cheapest(self) -> Genotype:
        """Return the cheapest network of the space."""
        least = min(costs.min().item() for costs in self.table.costs.values())
        values = {}
        for name, group in self._choices.items():
            costs = self.table.costs[name]
            values[name] = torch.zeros_like(costs)
            values[name][:, group.allowed] = 1 / (1 + costs[:, group.allowed] - least)
        return genotype_of(self.space, values)

    def _best_change(self, path: Sample, scores: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
        """The group, the row and the new column of the change with the least loss of score for each unit saved."""
        excess = self.table.of(path) - (self.settings.limit or 0.0)
        found: list[tuple[float, tuple[str, int, int]]] = []
        for name, group in self._choices.items():
            rows = zip(path[name], self.table.costs[name].tolist(), scores[name].tolist(), strict=True)
            for row, (now, costs, values) in enumerate(rows):
                for column in group.allowed if now != NOTHING else ():
                    saved = costs[now] - costs[column]
                    if saved > 1e-9 * self.table.mean:
                        # To save more than the excess is worth nothing.
                        loss = (values[now] - values[column]) / min(saved, excess)
                        found.append((loss, (name, row, column)))
        return min(found)[1] if found else None

    @cached_property
    def _terms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For each group, on the run's device: costs times shares of the A allowed candidates, and their columns."""
        table, device, found = self.table, self.world.device, {}
        for name, group in self._choices.items():
            weighted = table.shares[name][:, None] * table.costs[name][:, group.allowed]
            found[name] = (
                weighted.to(device, torch.get_default_dtype()),
                torch.tensor(group.allowed, device=device),
            )
        return found

    def _measured(self) -> CostTable:
        # Networks that are timed have weights; these must not change the run's random numbers.
        with torch.random.fork_rng([self.world.device] if self.world.device.type == "cuda" else []):
            return build_table(self.space, CostMeter(self.config, self.space, self.world))
