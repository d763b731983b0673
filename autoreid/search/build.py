"""Puts a search together from its config and data."""

from __future__ import annotations

import torch
from torch import Tensor

from autoreid.config import Config
from autoreid.data.training_data import SearchData
from autoreid.distributed import World
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.relaxations import Relaxation, build_relaxation
from autoreid.search.task import SearchState, SearchTask
from autoreid.seeding import derive_seed
from autoreid.spaces import build_space
from autoreid.training.build import (
    build_accumulation,
    build_objective,
    build_optimizer,
    measure_network,
    place_network,
)
from autoreid.training.cuda_graphs import capture_alphas
from autoreid.training.state import METRICS


def build_alpha_optimizer(config: Config, alphas: Alphas) -> torch.optim.Optimizer:
    """The alphas' own optimiser; the weights' decay never reaches them."""
    search = config.search
    rate, decay = search.alpha_learning_rate, search.alpha_weight_decay
    if search.alpha_optimizer == "sgd":
        return torch.optim.SGD(alphas.parameters(), rate, config.training.momentum, weight_decay=decay)
    return torch.optim.Adam(alphas.parameters(), rate, search.alpha_betas, weight_decay=decay)


def build_search(config: Config, data: SearchData, world: World) -> SearchTask:
    """Builds everything that a search is made of; equal seeds give equal weights and alphas on every rank."""
    space = build_space(config.search)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    supernet = space.build_supernet(data.num_identities)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "alphas"))
    shapes = {name: group.shape for name, group in space.choices().items()}
    alphas = Alphas(shapes, generator).to(world.device)
    relaxation = build_relaxation(config, data.stream.batches_per_epoch)
    graphs, single = config.training.cuda_graphs, config.search.level == "single"
    inputs = [_sample_mixing(relaxation, alphas, requires_grad=single)] if graphs else []
    # A hard relaxation computes some of the candidates only; the others have no gradient then.
    network = place_network(supernet, config, world, inputs, config.search.relaxation == "gumbel_hard")
    state = SearchState(
        network=supernet,
        weight_optimizer=build_optimizer(config.training, supernet),
        stream=data.stream,
        alphas=alphas,
        alpha_optimizer=build_alpha_optimizer(config, alphas),
        alpha_stream=data.alpha_stream,
        totals=torch.zeros(len(METRICS), device=world.device),
    )
    search, precision = config.search, config.training.precision
    of_alphas = precision if search.order == "first" else search.second_order_precision
    accumulation = build_accumulation(config, world)
    architect = Architect(
        supernet,
        alphas,
        relaxation,
        build_objective(config, world, of_alphas),
        state.weight_optimizer,
        search.order,
        accumulation,
    )
    if graphs and not single and search.order == "first":
        mixing = _sample_mixing(relaxation, alphas, requires_grad=True)
        architect.captured = capture_alphas(supernet, config, world, mixing)
    return SearchTask(
        config,
        world,
        state,
        space,
        relaxation,
        architect,
        build_objective(config, world, precision),
        accumulation,
        network,
        lambda mixing: measure_network(
            config, supernet, lambda images: supernet(images, mixing)[0], data, world
        ),
    )


def _sample_mixing(relaxation: Relaxation, alphas: Alphas, requires_grad: bool) -> dict[str, Tensor]:
    """Mixing weights of the shapes, and in the order, of those that a search's passes get."""
    with torch.no_grad():
        mixing = relaxation.mixing(alphas, 0, "weights")
    return {name: weights.clone().requires_grad_(requires_grad) for name, weights in mixing.items()}
