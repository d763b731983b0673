"""CUDA graphs: a network's forward and backward passes, captured once and replayed without the host's launches.

A pass is captured on inputs of fixed shapes. Replaying it reads the weights and updates the running statistics where
they lie in memory, so optimisers and checkpoints work as without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autoreid.config import Config
from autoreid.distributed import World, frozen_statistics
from autoreid.errors import ConfigError


def check_cuda_graphs(config: Config, world: World) -> None:
    """Raises ConfigError, with one line, if the config asks for graphs of what cannot be captured."""
    if not config.training.cuda_graphs:
        return
    if world.device.type != "cuda":
        raise ConfigError(f"training.cuda_graphs: true needs a GPU; this run computes on {world.device.type}")
    if config.distributed.share_batch_statistics and world.size > 1:
        raise ConfigError(
            f"training.cuda_graphs: true on {world.size} ranks needs distributed.share_batch_statistics: false; "
            f"collectives inside the network are not captured"
        )


class GraphedNetwork(nn.Module):
    """A network whose training passes are replayed. In evaluation, and without gradients, it is the network itself.

    Args:
        network: on its device, with the weights to train; not wrapped for ranks yet.
        inputs: of the shapes, dtypes and layouts of every training pass.
        capture: enters the precision that training passes run in.
    """

    def __init__(self, network: nn.Module, inputs: tuple[Any, ...], capture: Callable[[], Any]) -> None:
        super().__init__()
        self.network = network
        self._replayed = _captured(_Pass(network), network, inputs, capture)

    def forward(self, *inputs: Any) -> Any:
        """The network's output; of the captured shapes in training."""
        if self.training and torch.is_grad_enabled():
            return self._replayed(*inputs)
        return self.network(*inputs)


class GraphedAlphas(nn.Module):
    """The pass of the alphas' first-order gradient: weights without gradients, running statistics left alone.

    Args:
        supernet: on its device.
        inputs: images, and mixing weights that require gradients.
        capture: enters the precision that the alphas' passes run in.
    """

    def __init__(self, supernet: nn.Module, inputs: tuple[Any, ...], capture: Callable[[], Any]) -> None:
        super().__init__()
        weights = {name: weight.detach() for name, weight in supernet.named_parameters()}
        self._replayed = _captured(_FrozenPass(supernet, weights), supernet, inputs, capture)

    def forward(self, *inputs: Any) -> Any:
        """The supernet's output."""
        return self._replayed(*inputs)
