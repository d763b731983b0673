"""Builds a search from its config and data."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from autoreid.config import Config
from autoreid.data.training_data import SearchData
from autoreid.distributed import World
from autoreid.losses import RetrievalLoss, build_loss
from autoreid.models import OutputSizes, output_sizes
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.cost import SearchCost
from autoreid.search.progress import SearchProgress
from autoreid.search.relaxations import Relaxation, build_relaxation
from autoreid.search.state import SearchState
from autoreid.search.task import SearchTask
from autoreid.seeding import derive_seed
from autoreid.spaces.build import build_space
from autoreid.spaces.space import Space, Supernet
from autoreid.training.accumulation import Accumulation
from autoreid.training.build import build_accumulation, build_optimizer, place_network, warn_of_unused
from autoreid.training.cuda_graphs import capture_alphas
from autoreid.training.precision import PassPrecision


def build_alpha_optimizer(config: Config, alphas: Alphas) -> torch.optim.Optimizer:
    """Build the optimiser of the alphas, which has its own weight decay."""
    search = config.search
    rate, decay = search.alpha_learning_rate, search.alpha_weight_decay
    if search.alpha_optimizer == "sgd":
        return torch.optim.SGD(alphas.parameters(), rate, config.training.momentum, weight_decay=decay)
    return torch.optim.Adam(alphas.parameters(), rate, search.alpha_betas, weight_decay=decay)


def build_search(config: Config, data: SearchData, world: World) -> SearchTask:
    """Build a search. Equal seeds give equal weights and alphas on every rank.

    Raises:
        ConfigError: a setting is not possible on this device or with this many ranks.
    """
    warn_of_unused("search", config.search)
    warn_of_unused("training", config.training)
    space = build_space(config.search)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    supernet = space.build_supernet(data.num_identities)
    alphas = _build_alphas(config, space, world)
    relaxation = build_relaxation(config, space, data.stream.batches_per_epoch)
    losses = _build_losses(config, data, _output_sizes(config, supernet, relaxation, alphas))
    graphed = config.training.cuda_graphs
    single = config.search.level == "single"
    inputs = [_example_mixing(relaxation, alphas, requires_grad=single)] if graphed else []
    network = place_network(supernet, config, world, inputs, relaxation.samples)
    state = _build_state(config, data, world, space, supernet, alphas, losses)
    accumulation = build_accumulation(config, world)
    architect = _build_architect(config, world, state, relaxation, accumulation)
    precision = PassPrecision(config.training.precision, world.device)
    return SearchTask(
        config, world, data, state, space, relaxation, architect, precision, accumulation, network
    )


def _build_alphas(config: Config, space: Space, world: World) -> Alphas:
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "alphas"))
    return Alphas(_shapes(space), generator).to(world.device)


def _shapes(space: Space) -> dict[str, tuple[int, int]]:
    """Return the shape of each group of alphas, (E, O)."""
    return {name: group.shape for name, group in space.choices().items()}


def _build_losses(
    config: Config, data: SearchData, sizes: OutputSizes
) -> tuple[RetrievalLoss, RetrievalLoss]:
    """Return the loss of the weights and the loss of the alphas, which `search.losses` may set apart."""
    loss = build_loss(config.losses.in_search())
    loss.prepare(sizes, data.stream.labels)
    own, section = config.search.losses, "losses" if config.search.losses is None else "search.losses"
    alpha_loss = build_loss((own or config.losses).in_search(), only_weighted=True, section=section)
    if data.alpha_stream is not None:
        alpha_loss.prepare(sizes, data.alpha_stream.labels)
    return loss, alpha_loss


def _build_state(
    config: Config,
    data: SearchData,
    world: World,
    space: Space,
    supernet: Supernet,
    alphas: Alphas,
    losses: tuple[RetrievalLoss, RetrievalLoss],
) -> SearchState:
    loss, alpha_loss = losses
    return SearchState(
        network=supernet,
        weight_optimizer=build_optimizer(config.training, supernet, loss),
        stream=data.stream,
        loss=loss.to(world.device),
        alphas=alphas,
        alpha_loss=alpha_loss.to(world.device),
        alpha_optimizer=build_alpha_optimizer(config, alphas),
        alpha_stream=data.alpha_stream,
        progress=SearchProgress(_shapes(space), world.device),
        cost=None if config.search.cost.measure == "none" else SearchCost(config, space, world),
        alphas_before=copy.deepcopy(alphas) if config.search.alphas_see == "domains" else None,
        totals=torch.zeros(len(loss.metric_names), device=world.device),
    )


def _build_architect(
    config: Config, world: World, state: SearchState, relaxation: Relaxation, accumulation: Accumulation
) -> Architect:
    search, precision = config.search, config.training.precision
    architect = Architect(
        state.network,
        state.alphas,
        relaxation,
        state.alpha_loss,
        state.loss,
        state.weight_optimizer,
        search.order,
        PassPrecision(precision if search.order == "first" else search.second_order_precision, world.device),
        accumulation,
    )
    architect.by_running_statistics = search.alphas_see == "domains"
    captures = config.training.cuda_graphs and search.level != "single" and search.order == "first"
    if captures and not architect.by_running_statistics:
        mixing = _example_mixing(relaxation, state.alphas, requires_grad=True)
        architect.captured = capture_alphas(state.network, config, world, mixing)
    return architect


def _output_sizes(config: Config, supernet: Supernet, relaxation: Relaxation, alphas: Alphas) -> OutputSizes:
    mixing = _example_mixing(relaxation, alphas, requires_grad=False)
    shapes_only = {name: weights.to("meta") for name, weights in mixing.items()}
    return output_sizes(supernet, config.data.height, config.data.width, shapes_only)


def _example_mixing(relaxation: Relaxation, alphas: Alphas, requires_grad: bool) -> dict[str, Tensor]:
    """Mixing weights with the shapes and the order of those that a search's passes get."""
    with torch.no_grad():
        mixing = relaxation.mixture(alphas, 0, "weights")
    return {name: weights.clone().requires_grad_(requires_grad) for name, weights in mixing.items()}
