"""Random initialisation of networks."""

from __future__ import annotations

from torch import nn


def initialise(network: nn.Module) -> None:
    """Initialise convolutions with Kaiming's normal distribution (fan out) and linear layers with N(0, 0.01²).

    Biases become 0. As in torch and in the published networks, the fan out of a depthwise convolution is not
    divided by its groups. Norms keep torch's scale 1 and shift 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
