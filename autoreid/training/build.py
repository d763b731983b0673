"""Builds the parts that searches and trainings share: the network on its device, the optimiser, the micro-batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autoreid import distributed
from autoreid.config import Config, Search, Training
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.layers.batch_norm import share_batch_statistics
from autoreid.models.network import Network
from autoreid.training.accumulation import Accumulation
from autoreid.training.cuda_graphs import capture_training, check_cuda_graphs

_log = logging.getLogger(__name__)


def warn_of_unused(name: str, section: Search | Training) -> None:
    """Log the keys of a section that were set but have no effect."""
    for key, other in section.unused().items():
        _log.warning("%s.%s has no effect with %s.%s", name, key, name, other)


def memory_format(training: Training) -> torch.memory_format:
    """Return the memory format of images and weights."""
    return torch.channels_last if training.channels_last else torch.contiguous_format


def place_network(
    network: nn.Module, config: Config, world: World, inputs: Sequence[Any] = (), parts_unused: bool = False
) -> nn.Module:
    """Move a network to the device, compile or capture it if the config says so, and wrap it in DDP.

    Args:
        inputs: examples of the network's other inputs besides the images, for CUDA graphs; see `capture_training`.
        parts_unused: whether some weights may get no gradient in a step.

    Returns:
        The module for training passes. Use the original network for everything else.

    Raises:
        ConfigError: the network cannot be compiled or captured on this device or with this many ranks.
    """
    shared, training = config.distributed.share_batch_statistics, config.training
    if training.compile and shared and world.size > 1:
        raise ConfigError(
            f"training.compile: true on {world.size} ranks needs distributed.share_batch_statistics: "
            f"false; the collective of each norm would break the compiled graph"
        )
    if shared:
        share_batch_statistics(network)
    network.to(device=world.device, memory_format=memory_format(training))  # type: ignore[call-overload]
    if training.compile:
        network.compile()
    if training.cuda_graphs:
        check_cuda_graphs(config, world)
        network = capture_training(network, config, world, *inputs)
    # Resuming must be bit-exact on CPUs, and on GPUs in deterministic mode.
    exact = world.device.type == "cpu" or config.distributed.deterministic
    return distributed.data_parallel(network, not shared, parts_unused, exact)


def build_optimizer(training: Training, network: Network, loss: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser of the weights, with two parameter groups: the backbone, and the head with the loss's.

    The learning rate of the backbone is multiplied by `training.backbone_scale`.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    head = {id(weight) for module in (*network.head(), loss) for weight in module.parameters()}
    for weight in (*network.parameters(), *loss.parameters()):
        if weight.requires_grad:
            groups[id(weight) in head].append(weight)
    named = [
        {"params": groups[False], "scale": training.backbone_scale, "part": "backbone"},
        {"params": groups[True], "scale": 1.0, "part": "head"},
    ]
    rate, decay = training.learning_rate, training.weight_decay
    match training.optimizer:
        case "sgd":
            return torch.optim.SGD(
                named, rate, training.momentum, weight_decay=decay, nesterov=training.nesterov
            )
        case "adamw":
            return torch.optim.AdamW(named, rate, weight_decay=decay)
        case name:
            return torch.optim.Adam(named, rate, weight_decay=decay, amsgrad=name == "amsgrad")


def build_accumulation(config: Config, world: World) -> Accumulation:
    """Build the splitting of a rank's batch into micro-batches.

    Raises:
        ConfigError: the identities of a rank cannot be split evenly into the micro-batches, or these are too small for
            the triplet loss or a batch norm.
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
    _check_negatives(config, world)
    sharing = world.size if config.distributed.share_batch_statistics else 1
    if batch_size // count // world.size * sharing == 1:
        raise ConfigError(
            f"data.batch_size {batch_size} with training.accumulation {count} on {world.size} ranks: a batch norm "
            f"would see one image at a time, which has no batch statistics; use a larger batch or fewer micro-batches"
        )
    return Accumulation(count, images_per_identity)


def _check_negatives(config: Config, world: World) -> None:
    """Check that a triplet loss without `mine_across_ranks` sees two identities; the config checks a single rank."""
    identities = config.data.batch_size // config.data.images_per_identity
    of_alphas = config.search.losses if config.task == "search" else None
    for key, losses in (("losses", config.losses), ("search.losses", of_alphas)):
        if losses is None or not losses.has_triplets or losses.mine_across_ranks:
            continue
        if identities // config.training.accumulation // world.size < 2:
            raise ConfigError(
                f"data.batch_size {config.data.batch_size} on {world.size} ranks: each micro-batch of a rank has one "
                f"identity, so that the triplet loss is always 0; use {key}.mine_across_ranks: true, fewer ranks or a "
                f"larger batch"
            )
