"""How large a network is: its parameters and its multiply-accumulates."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoreid.errors import ConfigError


def count_parameters(network: nn.Module, without_classifier: bool = True) -> int:
    """Weights of a network; the classifier, which grows with the training set, is left out as papers do.

    So is an auxiliary head, which serves training alone.
    """
    left_out = {"classifier", "auxiliary"} if without_classifier else set()
    return sum(
        parameter.numel()
        for name, parameter in network.named_parameters()
        if left_out.isdisjoint(name.split("."))
    )


def count_macs(network: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of convolutions and matrix products that embed one image, as papers count them.

    The network is in evaluation mode, so no classifier runs, and on the meta device, so nothing is computed.
    """
    shapes_only = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes_only(torch.empty(1, 3, height, width, device="meta"))
    return int(counter.get_total_flops()) // 2


def check_input_size(network: nn.Module, height: int, width: int) -> None:
    """Raises ConfigError where images of height × width pixels are too small for a network, by its shapes alone."""
    try:
        count_macs(network, height, width)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"data.height {height}, data.width {width}: too small for the network: {reason}"
        ) from error
