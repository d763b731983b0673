"""Reads the genotype at the end of a search, where the largest alphas are not the answer."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoreid.config import Config
from autoreid.data.loaders import embedding_batches
from autoreid.data.training_data import SearchData
from autoreid.distributed import StopSignal, World, check_stop
from autoreid.search.cost import SearchCost
from autoreid.seeding import derive_seed
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import Sample, Space
from autoreid.training.build import memory_format
from autoreid.training.measure import measure_network
from autoreid.training.precision import PassPrecision

_log = logging.getLogger(__name__)

#: Random networks that may be above the limit of the cost, for each network of the first generation.
_DRAWS = 100


class ReadOut:
    """Reads the genotype from a trained supernet by measuring many networks in it. All ranks call it together.

    Args:
        stop: a stop signal ends the read-out; the run resumes before it.
        cost: the genotype must not exceed its limit.
    """

    def __init__(
        self,
        config: Config,
        space: Space,
        supernet: nn.Module,
        data: SearchData,
        world: World,
        stop: StopSignal,
        cost: SearchCost | None = None,
    ) -> None:
        self.config, self.space, self.supernet, self.cost = config, space, supernet, cost
        self.data, self.world, self.stop = data, world, stop
        self._measured, self._logged = 0, time.monotonic()

    def by_perturbation(self, probabilities: Mapping[str, Tensor]) -> Genotype:
        """Choose the candidates whose removal from the mixture lowers the mAP most (Wang et al., ICLR 2021).

        Each candidate is removed alone, and the others of its row take its weight in proportion; nothing is trained in
        between. Weights of edges, with partial channels, keep their probabilities.

        Args:
            probabilities: the mixing weights, (E, O) for each group.
        """
        groups = {name: group for name, group in self.space.choices().items() if group.family is None}
        total = 1 + sum(len(group.rows) * len(group.allowed) for group in groups.values())
        scores = {name: values.clone() for name, values in probabilities.items()}
        whole = self._measure((probabilities,), total)
        for name, group in groups.items():
            scores[name].fill_(-torch.inf)
            for row, column in itertools.product(range(len(group.rows)), group.allowed):
                mixing = {**probabilities, name: without(probabilities[name], row, column)}
                scores[name][row, column] = whole - self._measure((mixing,), total)
        genotype = self.space.genotype(scores)
        return genotype if self.cost is None else self.cost.within_limit(genotype, scores)

    def by_evolution(self) -> Genotype:
        """Choose the network with the highest mAP in the supernet, by evolution (arXiv 1904.00420).

        A generation consists of mutations of the parents, which are the better half of the networks measured so far.
        Each network is measured with its own running statistics, because those of the supernet are means over all
        networks. The images of a measurement are spread over the ranks. Networks above the limit of the cost are
        skipped; if many random networks are all above it, evolution starts from the cheapest network.
        """
        settings, fits = self.config.search.one_shot, self._fits
        size, half = settings.population, max(1, settings.population // 2)
        most = size + half * (settings.generations - 1)
        rng = np.random.default_rng(derive_seed(self.config.seed, "evolution"))
        found: dict[str, tuple[float, Genotype]] = {}
        drawn = (self.space.random_genotype(rng) for _ in range(_DRAWS * size))
        generation = list(islice(filter(fits, drawn), size))
        if not generation:
            assert self.cost is not None  # noqa: S101 (without a limit, all fit)
            generation = [self.cost.cheapest()]
        for _ in range(settings.generations):
            for genotype in generation:
                if str(genotype) not in found:
                    found[str(genotype)] = self._map_of_path(genotype, most), genotype
            best = sorted(found.values(), key=lambda one: -one[0])[:half]
            parents = [genotype for _, genotype in best]
            mutations = (self.space.mutated(parents[int(rng.integers(len(parents)))], rng) for _ in parents)
            generation = list(filter(fits, mutations))
        return parents[0]

    def _fits(self, genotype: Genotype) -> bool:
        return self.cost is None or self.cost.fits(genotype)

    def _map_of_path(self, genotype: Genotype, total: int) -> float:
        path = self.space.path(genotype)
        with own_statistics(self.config, self.supernet, path, self.data, self.world):
            return self._measure((None, path), total)

    def _measure(self, inputs: tuple[Any, ...], total: int) -> float:
        """Return the mAP of the supernet with these inputs besides the images, one measurement of at most `total`."""
        check_stop(self.stop)
        value = measure_network(self.config, self.supernet, self.data, self.world, inputs).map
        self._measured += 1
        now = time.monotonic()
        if now - self._logged >= self.config.reporting.every_seconds:
            self._logged = now
            _log.info("read-out: %d of at most %d networks measured", self._measured, total)
        return value


def without(mixing: Tensor, row: int, column: int) -> Tensor:
    """Return mixing weights (E, O) in which one candidate has weight 0 and the rest of its row still sums to 1."""
    found = mixing.clone()
    found[row, column] = 0
    found[row] /= found[row].sum().clamp(min=torch.finfo(found.dtype).tiny)
    return found


@contextmanager
def own_statistics(
    config: Config, supernet: nn.Module, path: Sample, data: SearchData, world: World
) -> Iterator[None]:
    """Replace the running statistics by the mean statistics of a path on a few batches of training images."""
    before = [(buffer, buffer.clone()) for buffer in supernet.buffers()]
    try:
        with torch.no_grad():
            _estimate(config, supernet, path, data, world)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _estimate(config: Config, supernet: nn.Module, path: Sample, data: SearchData, world: World) -> None:
    norms = [module for module in supernet.modules() if isinstance(module, _BatchNorm)]
    totals = [torch.zeros_like(value) for norm in norms for value in _statistics(norm)]
    precision, count = PassPrecision(config.training.precision, world.device), 0
    supernet.train()
    with precision.backends(), torch.compiler.set_stance("force_eager"):
        for images in _images(config, data, world):
            for norm in norms:
                for value in _statistics(norm):
                    value.zero_()
            with precision.autocast():
                supernet(images, None, path)
            # From 0, one update leaves the batch's statistics times the momentum.
            values = [value / (norm.momentum or 1.0) for norm in norms for value in _statistics(norm)]
            totals, count = [total + value for total, value in zip(totals, values, strict=True)], count + 1
    means = iter(totals)
    for norm in norms:
        for value in _statistics(norm):
            value.copy_(next(means) / count)


def _statistics(norm: _BatchNorm) -> list[Tensor]:
    return [value for value in (norm.running_mean, norm.running_var) if value is not None]


def _images(config: Config, data: SearchData, world: World) -> Iterator[Tensor]:
    """This rank's share of a few batches of training images, evenly spaced, without augmentation."""
    split, share = data.stream.split, config.data.batch_size // world.size
    wanted = config.search.one_shot.norm_batches * config.data.batch_size
    chosen = np.linspace(0, len(split) - 1, wanted).round().astype(np.int64)
    # Images of an identity are consecutive: each batch takes images at equal distances.
    order = chosen.reshape(config.data.batch_size, -1).T.reshape(-1, world.size, share)[:, world.rank]
    layout = memory_format(config.training)
    for batch in embedding_batches(split, order.flatten(), data.images, share, 0, world.device):
        yield batch.images.contiguous(memory_format=layout)
