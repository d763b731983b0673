"""Puts a search together from its config and data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from autoreid import distributed
from autoreid.config import Config
from autoreid.data.loaders import embedding_batches
from autoreid.data.search_data import SearchData
from autoreid.data.transforms import evaluation_transform
from autoreid.distributed import World
from autoreid.evaluation import RetrievalResult, measure_retrieval
from autoreid.losses import RetrievalLoss
from autoreid.search.alphas import Alphas
from autoreid.search.architect import Architect
from autoreid.search.loop import METRICS, SearchParts, SearchState
from autoreid.search.objective import Objective
from autoreid.search.reid_cell import ReidCellSpace
from autoreid.search.relaxations import Softmax
from autoreid.seeding import derive_seed


def build_search(config: Config, data: SearchData, world: World) -> tuple[SearchState, SearchParts]:
    """Builds everything that a search is made of; equal seeds give equal weights and alphas on every rank."""
    space = ReidCellSpace(config.search)
    torch.manual_seed(derive_seed(config.seed, "weights"))
    supernet = space.build_supernet(data.num_identities)
    if config.distributed.share_batch_statistics:
        distributed.share_batch_statistics(supernet)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    supernet.to(device=world.device, memory_format=memory_format)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "alphas"))
    alphas = Alphas(space.alpha_shapes(), generator).to(world.device)
    training, losses, settings = config.training, config.losses, config.search
    state = SearchState(
        supernet,
        alphas,
        torch.optim.SGD(
            supernet.parameters(),
            training.learning_rate,
            training.momentum,
            weight_decay=training.weight_decay,
        ),
        torch.optim.Adam(
            alphas.parameters(),
            settings.alpha_learning_rate,
            settings.alpha_betas,
            weight_decay=settings.alpha_weight_decay,
        ),
        data.weight_stream,
        data.alpha_stream,
        totals=torch.zeros(len(METRICS), device=world.device),
    )
    loss = RetrievalLoss(
        losses.classification_weight,
        losses.margin,
        losses.label_smoothing,
        distributed.gather if losses.mine_across_ranks else None,
        world.rank,
    )
    objective = Objective(loss, training.precision, world.device)
    relaxation = Softmax()
    architect = Architect(supernet, alphas, relaxation, objective, state.weight_optimizer, settings.order)
    network = distributed.data_parallel(supernet, not config.distributed.share_batch_statistics)
    measure = partial(_measure, config, data, supernet, world)
    return state, SearchParts(space, relaxation, architect, objective, network, measure)


def _measure(
    config: Config, data: SearchData, supernet: nn.Module, world: World, mixing: Mapping[str, Tensor]
) -> RetrievalResult:
    """Ranks the gallery by the supernet's embedding, mixed by the probabilities of the choices."""
    distributed.broadcast_buffers(supernet)
    shape = (config.data.height, config.data.width)
    load = partial(
        embedding_batches,
        transform=evaluation_transform(*shape),
        shape=shape,
        batch_size=config.evaluation.batch_size,
        workers=config.data.workers,
    )
    supernet.eval()
    try:
        return measure_retrieval(
            lambda images: supernet(images, mixing)[0],
            data.query,
            data.gallery,
            load,
            world,
            config.evaluation.metric,
        )
    finally:
        supernet.train()
