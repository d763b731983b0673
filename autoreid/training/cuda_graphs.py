"""CUDA graphs: captures the forward and backward pass of a network once, and replays them in every step.

A replay launches all kernels at once, where the host would otherwise launch them one by one. It reads the weights and
updates the running statistics in place, so optimisers, checkpoints and evaluation work as without graphs. The kernels
are the same. Each captured pass has a separate memory pool.
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
    """Raise ConfigError if the network cannot be captured on this device or with this many ranks."""
    if world.device.type != "cuda":
        raise ConfigError(f"training.cuda_graphs: true needs a GPU; this run computes on {world.device.type}")
    if config.distributed.share_batch_statistics and world.size > 1:
        raise ConfigError(
            f"training.cuda_graphs: true on {world.size} ranks needs distributed.share_batch_statistics: false; "
            f"collectives within the network are not captured"
        )


class _TrainingPass(nn.Module):
    """Wraps a network to be captured. Capturing replaces the forward method of the wrapper, not of the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)


class _FrozenPass(nn.Module):
    """A supernet with detached weights that does not update its running statistics."""

    def __init__(self, supernet: nn.Module) -> None:
        super().__init__()
        self._supernet = [supernet]  # in a list, so that it is not registered as a submodule
        self._weights = {name: weight.detach() for name, weight in supernet.named_parameters()}

    def forward(self, *inputs: Any) -> Any:
        (supernet,) = self._supernet
        with frozen_statistics(supernet):
            return functional_call(supernet, self._weights, inputs)


def capture_training(network: nn.Module, config: Config, world: World, *inputs: Any) -> nn.Module:
    """Capture the forward and backward pass of a network in training.

    Args:
        network: on its device, in training mode, and not wrapped in DDP.
        inputs: examples of the network's other inputs besides the images: tensors, or dictionaries of tensors. Their
            values do not matter. They must require gradients where later inputs do, and have the same order.

    Returns:
        A module that shares the network's weights and replays its training passes.
    """
    return _capture(_TrainingPass(network), network, config, world, *inputs)


def capture_alphas(
    supernet: nn.Module, config: Config, world: World, mixing: Mapping[str, Tensor]
) -> nn.Module:
    """Capture the pass that computes the first-order gradient of the alphas.

    It computes no gradients of the weights and does not update the running statistics.

    Args:
        supernet: on its device, in training mode, and not wrapped in DDP.
        mixing: examples of the mixing weights. They require gradients.
    """
    return _capture(_FrozenPass(supernet), supernet, config, world, mixing)


def _capture(module: nn.Module, network: nn.Module, config: Config, world: World, *inputs: Any) -> nn.Module:
    precision, data = config.training.precision, config.data
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
    images = torch.zeros(data.batch_size // world.size, 3, data.height, data.width, device=world.device)
    buffers = [buffer.clone() for buffer in network.buffers()]
    # No cache of the weights in half precision: a replay would not see that the weights have changed.
    autocast = torch.autocast(
        world.device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False
    )
    with autocast, allowing_tf32(precision, world.device):
        arguments = (images.contiguous(memory_format=layout), *inputs)
        captured: nn.Module = torch.cuda.make_graphed_callables(module, arguments)  # type: ignore[assignment]
    with torch.no_grad():  # The warm-up passes before the capture have updated the running statistics.
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return captured
