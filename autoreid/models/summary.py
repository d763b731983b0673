"""The size of a network: parameters and multiply-accumulates, and the images that it accepts."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoreid.errors import ConfigError
from autoreid.models.last_map import LastMap
from autoreid.models.network import Network


def count_parameters(network: nn.Module) -> int:
    """Count the parameters of a network.

    As in the literature, the classifier is not counted, because it grows with the training set, and neither is an
    auxiliary head, which is used only in training.
    """
    excluded = {"classifier", "auxiliary"}
    return sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if excluded.isdisjoint(name.split("."))
    )


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Count the multiply-accumulates of convolutions and matrix products for embedding one image.

    The network is run in evaluation mode, without the classifier, and on the meta device, without computing.
    """
    shapes_only = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes_only(torch.empty(1, 3, height, width, device="meta"))
    return int(counter.get_total_flops()) // 2


class OutputSizes(NamedTuple):
    """The sizes of a network's outputs in training mode.

    Attributes:
        embedding: D of the embeddings (B, D).
        map_channels: C of the last feature map (B, C, h, w); None if the network names none.
        embeddings: number of vectors of equal size that the embedding consists of.
    """

    embedding: int
    map_channels: int | None = None
    embeddings: int = 1


def output_sizes(network: Network, height: int, width: int, *inputs: Any) -> OutputSizes:
    """Return the sizes of a network's outputs in training mode; computes only shapes.

    Args:
        inputs: the network's other inputs besides the images, on the meta device.
    """
    shapes_only = copy.deepcopy(network).to("meta").train()
    last = None if network.last_map() is None else LastMap(shapes_only)
    with torch.no_grad():
        embeddings, *_ = shapes_only(torch.empty(2, 3, height, width, device="meta"), *inputs)
    channels = None if last is None else last.take().shape[1]
    return OutputSizes(embeddings.shape[1], channels, network.embeddings)


def check_input_size(network: nn.Module, height: int, width: int) -> None:
    """Raise ConfigError if a network cannot take images of height × width pixels; computes only shapes."""
    try:
        count_macs(network, height, width)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"data.height {height}, data.width {width}: too small for the network: {reason}"
        ) from error
