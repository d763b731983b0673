"""What searches and trainings build alike: placed networks, optimisers, the objective, the measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autoreid import distributed
from autoreid.config import Config, Precision, Training
from autoreid.data.loaders import embedding_batches
from autoreid.data.training_data import TrainingData
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.evaluation import MeanRetrieval, measure_retrieval
from autoreid.layers.batch_norm import share_batch_statistics
from autoreid.losses import RetrievalLoss
from autoreid.training.accumulation import Accumulation
from autoreid.training.cuda_graphs import capture_training, check_cuda_graphs
from autoreid.training.embedding import embedding_in
from autoreid.training.objective import Objective

#: Modules of a network that its head is made of; all others are the backbone.
HEADS = ("neck", "classifier", "reduce", "auxiliary")


def memory_format(training: Training) -> torch.memory_format:
    """How images and weights lie in memory."""
    return torch.channels_last if training.channels_last else torch.contiguous_format


def place_network(
    network: nn.Module, config: Config, world: World, inputs: Sequence[Any] = (), parts_unused: bool = False
) -> nn.Module:
    """Moves a network to the device, compiles or captures it there if that is wanted, and wraps it for the ranks.

    Args:
        inputs: what the network takes beside images, for CUDA graphs; see `capture_training`.
        parts_unused: whether a step may leave weights without a gradient.

    Returns:
        The network for training passes. The one that was given stays as it is, for everything else.

    Raises:
        ConfigError: the device or the ranks do not go with a compiled or captured network.
    """
    shared, training = config.distributed.share_batch_statistics, config.training
    if training.compile and shared and world.size > 1:
        raise ConfigError(
            f"training.compile: true on {world.size} ranks needs distributed.share_batch_statistics: false; a "
            f"collective for each norm would cut the compiled network to pieces"
        )
    if shared:
        share_batch_statistics(network)
    network.to(device=world.device, memory_format=memory_format(training))  # type: ignore[call-overload]
    if training.compile:
        network.compile()
    if training.cuda_graphs:
        check_cuda_graphs(config, world)
        network = capture_training(network, config, world, *inputs)
    # A resumed run gives the bits of one that went on, on CPUs always and on GPUs if that is asked for.
    exact = world.device.type == "cpu" or config.distributed.deterministic
    return distributed.data_parallel(network, not shared, parts_unused, exact)


def build_optimizer(training: Training, network: nn.Module) -> torch.optim.Optimizer:
    """The weights' optimiser, in two groups: the backbone, whose rate is scaled, and the head."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            groups[name.split(".")[0] in HEADS].append(weight)
    named = [
        {"params": groups[False], "scale": training.backbone_scale, "part": "backbone"},
        {"params": groups[True], "scale": 1.0, "part": "head"},
    ]
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "amsgrad":
        return torch.optim.Adam(named, rate, weight_decay=decay, amsgrad=True)
    return torch.optim.SGD(named, rate, training.momentum, weight_decay=decay, nesterov=training.nesterov)


def build_objective(config: Config, world: World, precision: Precision) -> Objective:
    """The config's retrieval loss, of a network that computes in some precision."""
    losses = config.losses
    loss = RetrievalLoss(
        losses.classification_weight,
        losses.margin,
        losses.label_smoothing,
        distributed.gather if losses.mine_across_ranks else None,
        world.rank,
    )
    return Objective(loss, precision, world.device, losses.auxiliary_weight)


def build_accumulation(config: Config, world: World) -> Accumulation:
    """The config's micro-batches.

    Raises:
        ConfigError: a rank's identities cannot be dealt to so many alike.
    """
    count, images_per_identity = config.training.accumulation, config.data.images_per_identity
    unit = count * images_per_identity * world.size
    batch_size = config.data.batch_size
    if batch_size % unit:
        below = batch_size // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        raise ConfigError(
            f"training.accumulation {count} with data.images_per_identity {images_per_identity} on {world.size} "
            f"ranks: data.batch_size {batch_size} must be a multiple of {unit}, such as {nearest}"
        )
    return Accumulation(count, images_per_identity)


def measure_network(
    config: Config,
    network: nn.Module,
    embed: Callable[[Tensor], Tensor],
    data: TrainingData,
    world: World,
) -> MeanRetrieval:
    """Ranks each target's gallery by an embedding of the network, in evaluation mode with rank 0's statistics.

    Images are embedded in the precision and layout of the training; distances are always float32.
    """
    training = config.training
    embed = embedding_in(embed, training.precision, memory_format(training), world.device)
    distributed.broadcast_buffers(network)
    load = partial(
        embedding_batches,
        images=data.images,
        batch_size=config.evaluation.batch_size,
        workers=config.data.workers,
        device=world.device,
    )
    network.eval()
    try:
        # Once an epoch: not worth a compilation of its own.
        with torch.compiler.set_stance("force_eager"):
            return MeanRetrieval(
                {
                    target.name: measure_retrieval(
                        embed,
                        target.query,
                        target.gallery,
                        load,
                        world,
                        config.evaluation.metric,
                    )
                    for target in data.targets
                }
            )
    finally:
        network.train()
