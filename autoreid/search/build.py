"""Puts a search together from its config and data."""

from __future__ import annotations

import torch

from autoreid.config import Config
from autoreid.data.training_data import SearchData
from autoreid.distributed import World
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.reid_cell import ReidCellSpace
from autoreid.search.relaxations import Softmax
from autoreid.search.task import SearchState, SearchTask
from autoreid.seeding import derive_seed
from autoreid.training.build import build_objective, build_optimizer, measure_network, place_network
from autoreid.training.state import METRICS


def build_search(config: Config, data: SearchData, world: World) -> SearchTask:
    """Builds everything that a search is made of; equal seeds give equal weights and alphas on every rank."""
    space = ReidCellSpace(config.search)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    supernet = space.build_supernet(data.num_identities)
    network = place_network(supernet, config, world)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "alphas"))
    alphas = Alphas(space.alpha_shapes(), generator).to(world.device)
    state = SearchState(
        network=supernet,
        weight_optimizer=build_optimizer(config.training, supernet),
        stream=data.stream,
        alphas=alphas,
        alpha_optimizer=torch.optim.Adam(
            alphas.parameters(),
            config.search.alpha_learning_rate,
            config.search.alpha_betas,
            weight_decay=config.search.alpha_weight_decay,
        ),
        alpha_stream=data.alpha_stream,
        totals=torch.zeros(len(METRICS), device=world.device),
    )
    objective = build_objective(config, world)
    relaxation = Softmax()
    architect = Architect(
        supernet, alphas, relaxation, objective, state.weight_optimizer, config.search.order
    )
    return SearchTask(
        config,
        world,
        state,
        space,
        relaxation,
        architect,
        objective,
        network,
        lambda mixing: measure_network(
            config, supernet, lambda images: supernet(images, mixing)[0], data.targets, world
        ),
    )
