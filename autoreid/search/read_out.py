"""Reads the genotype at the end of a search, where the largest alphas are not the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoreid.config import Config
from autoreid.data.loaders import embedding_batches
from autoreid.data.training_data import SearchData
from autoreid.distributed import World
from autoreid.search.cost import SearchCost
from autoreid.seeding import derive_seed
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import Sample, Space
from autoreid.training.build import memory_format
from autoreid.training.measure import measure_network
from autoreid.training.precision import PassPrecision

#: Random networks that may be above the limit of the cost, for each network of the first generation.
_DRAWS = 100


def by_perturbation(
    config: Config,
    space: Space,
    supernet: nn.Module,
    probabilities: Mapping[str, Tensor],
    data: SearchData,
    world: World,
    cost: SearchCost | None = None,
) -> Genotype:
    """Choose the candidates whose removal from the mixture lowers the mAP most (Wang et al., ICLR 2021).

    Each candidate is removed alone, and the others of its row take its weight in proportion; nothing is trained in
    between. Weights of edges, with partial channels, keep their probabilities.

    Args:
        probabilities: the mixing weights, (E, O) for each group.
        cost: the genotype must not exceed its limit.
    """
    scores = {name: values.clone() for name, values in probabilities.items()}
    whole = measure_network(config, supernet, data, world, (probabilities,)).map
    for name, group in space.choices().items():
        if group.family is not None:
            continue
        scores[name].fill_(-torch.inf)
        for row in range(len(group.rows)):
            for column in group.allowed:
                mixing = {**probabilities, name: without(probabilities[name], row, column)}
                scores[name][row, column] = (
                    whole - measure_network(config, supernet, data, world, (mixing,)).map
                )
    genotype = space.genotype(scores)
    return genotype if cost is None else cost.within_limit(genotype, scores)


def without(mixing: Tensor, row: int, column: int) -> Tensor:
    """Return mixing weights (E, O) in which one candidate has weight 0 and the rest of its row still sums to 1."""
    found = mixing.clone()
    found[row, column] = 0
    found[row] /= found[row].sum().clamp(min=torch.finfo(found.dtype).tiny)
    return found


def by_evolution(
    config: Config,
    space: Space,
    supernet: nn.Module,
    data: SearchData,
    world: World,
    cost: SearchCost | None = None,
) -> Genotype:
    """Choose the network with the highest mAP in the supernet, by evolution (arXiv 1904.00420).

    A generation consists of mutations of the parents, which are the better half of the networks measured so far. Each
    network is measured with its own running statistics, because those of the supernet are means over all networks. The
    images of a measurement are spread over the ranks. Networks above the limit of the cost are
    skipped; if many random networks are all above it, evolution starts from the cheapest network.
    """
    settings = config.search.one_shot
    rng = np.random.default_rng(derive_seed(config.seed, "evolution"))
    found: dict[str, tuple[float, Genotype]] = {}
    drawn = (space.random_genotype(rng) for _ in range(_DRAWS * settings.population))
    if cost is None:
        generation = list(islice(drawn, settings.population))
    else:
        generation = list(islice(filter(cost.fits, drawn), settings.population)) or [cost.cheapest()]
    for _ in range(settings.generations):
        for genotype in generation:
            if str(genotype) not in found:
                path = space.path(genotype)
                with own_statistics(config, supernet, path, data, world):
                    value = measure_network(config, supernet, data, world, (None, path)).map
                found[str(genotype)] = value, genotype
        best = sorted(found.values(), key=lambda one: -one[0])[: max(1, settings.population // 2)]
        parents = [genotype for _, genotype in best]
        generation = [space.mutated(parents[int(rng.integers(len(parents)))], rng) for _ in parents]
        generation = [genotype for genotype in generation if cost is None or cost.fits(genotype)]
    return parents[0]


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
