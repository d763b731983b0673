"""Builds what searches and trainings have in common: the placed network, the optimiser, the micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autoreid import distributed
from autoreid.config import Config, Training
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.layers.batch_norm import share_batch_statistics
from autoreid.models.network import Network
from autoreid.training.accumulation import Accumulation
from autoreid.training.cuda_graphs import capture_training, check_cuda_graphs


def memory_format(training: Training) -> torch.memory_format:
    """Returns the memory layout of images and weights."""
    return torch.channels_last if training.channels_last else torch.contiguous_format


def place_network(
    network: nn.Module, config: Config, world: World, inputs: Sequence[Any] = (), parts_unused: bool = False
) -> nn.Module:
    """Moves a network to the device, compiles or captures it if the config says so, and wraps it in DDP.

    Args:
        inputs: what the network takes beside images, for CUDA graphs; see `capture_training`.
        parts_unused: whether a step may leave weights without a gradient.

    Returns:
        The network for training passes. Use the given network for everything else.

    Raises:
        ConfigError: the network cannot be compiled or captured on this device or with this many ranks.
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
    # A resumed run is bit-exact on CPUs, and on GPUs in deterministic mode.
    exact = world.device.type == "cpu" or config.distributed.deterministic
    return distributed.data_parallel(network, not shared, parts_unused, exact)


def build_optimizer(training: Training, network: Network) -> torch.optim.Optimizer:
    """Builds the optimiser of the weights, with two groups: the backbone, whose rate is scaled, and the head."""
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    head = {id(weight) for module in network.head() for weight in module.parameters()}
    for weight in network.parameters():
        if weight.requires_grad:
            groups[id(weight) in head].append(weight)
    named = [
        {"params": groups[False], "scale": training.backbone_scale, "part": "backbone"},
        {"params": groups[True], "scale": 1.0, "part": "head"},
    ]
    rate, decay = training.learning_rate, training.weight_decay
    if training.optimizer == "amsgrad":
        return torch.optim.Adam(named, rate, weight_decay=decay, amsgrad=True)
    return torch.optim.SGD(named, rate, training.momentum, weight_decay=decay, nesterov=training.nesterov)


def build_accumulation(config: Config, world: World) -> Accumulation:
    """Builds the config's micro-batches.

    Raises:
        ConfigError: the identities of a rank cannot be distributed evenly over the micro-batches.
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
