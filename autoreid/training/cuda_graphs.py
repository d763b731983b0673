"""CUDA graphs: a network's forward and backward passes, captured once and replayed without the host's launches.

A replay reads the weights, and updates the running statistics, where they lie in memory: optimisers, checkpoints and
evaluation work as without graphs, and the kernels are the same. Each captured pass keeps its own memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autoreid.config import Config
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.layers.batch_norm import frozen_statistics
from autoreid.training.precision import allowing_tf32


def check_cuda_graphs(config: Config, world: World) -> None:
    """Raises ConfigError if this run's device or ranks do not go with the graphs that the config asks for."""
    if world.device.type != "cuda":
        raise ConfigError(f"training.cuda_graphs: true needs a GPU; this run computes on {world.device.type}")
    if config.distributed.share_batch_statistics and world.size > 1:
        raise ConfigError(
            f"training.cuda_graphs: true on {world.size} ranks needs distributed.share_batch_statistics: false; "
            f"collectives within the network are not captured"
        )


class _Pass(nn.Module):
    """The network, in a module of its own: its forward method is replaced, the network's stays."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)


class _FrozenPass(nn.Module):
    """The supernet with weights that need no gradient, and running statistics left alone."""

    def __init__(self, supernet: nn.Module) -> None:
        super().__init__()
        self._of = [supernet]  # in a list, so that its weights are not this module's
        self._weights = {name: weight.detach() for name, weight in supernet.named_parameters()}

    def forward(self, *inputs: Any) -> Any:
        (supernet,) = self._of
        with frozen_statistics(supernet):
            return functional_call(supernet, self._weights, inputs)


def capture_training(network: nn.Module, config: Config, world: World, *inputs: Any) -> nn.Module:
    """The network, whose training passes are replayed from now on.

    Args:
        network: on its device, in training mode, and not wrapped for ranks yet.
        inputs: what the network takes beside a rank's share of a batch, as tensors or dictionaries of them, whose
            values do not matter; they require gradients if they will, and come in the same order always.

    Returns:
        A module with the network's weights, for training passes only.
    """
    return _capture(_Pass(network), network, config, world, *inputs)


def capture_alphas(
    supernet: nn.Module, config: Config, world: World, mixing: Mapping[str, Tensor]
) -> nn.Module:
    """The pass of the alphas' first-order gradient, replayed; arguments as in `capture_training`."""
    return _capture(_FrozenPass(supernet), supernet, config, world, mixing)


def _capture(module: nn.Module, network: nn.Module, config: Config, world: World, *inputs: Any) -> nn.Module:
    precision, data = config.training.precision, config.data
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
    images = torch.zeros(data.batch_size // world.size, 3, data.height, data.width, device=world.device)
    buffers = [buffer.clone() for buffer in network.buffers()]
    # Without autocast's cache of converted weights: they change, and a replay would not notice.
    half = torch.autocast(
        world.device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )
    with half, allowing_tf32(precision, world.device):
        arguments = (images.contiguous(memory_format=layout), *inputs)
        captured: nn.Module = torch.cuda.make_graphed_callables(module, arguments)  # type: ignore[assignment]
    with torch.no_grad():  # what the passes before the capture did to the running statistics
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return captured
