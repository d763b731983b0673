"""MSINet's cell: two branches of different receptive field that interact twice (arXiv 2303.07065, section 3.3).

Both branches have the same layers up to their first light convolutions, so these are computed together. The weights and
maps of both are stacked along the channels, (B, 2·C, H, W): first branch a, then branch b.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers.pointwise import Pointwise


def pointwise_norm(in_channels: int, out_channels: int, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """A 1×1 convolution without bias, batch norm, and optionally ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=Pointwise(in_channels, out_channels, 1, groups=groups, bias=False),
        bn=nn.BatchNorm2d(out_channels),
    )
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def light_conv(channels: int, branches: int = 1) -> nn.Sequential:
    """OSNet's light 3×3 convolution of one branch or of both: pointwise, depthwise, batch norm, ReLU."""
    wide = branches * channels
    return nn.Sequential(
        OrderedDict(
            conv1=Pointwise(wide, wide, 1, groups=branches, bias=False),
            conv2=nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            bn=nn.BatchNorm2d(wide),
            relu=nn.ReLU(inplace=True),
        )
    )


class Scales(nn.Sequential):
    """One light convolution for branch a, three for branch b: receptive fields of 3 and 7 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__(light_conv(channels, branches=2), light_conv(channels), light_conv(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 2·C, H, W) -> (B, 2·C, H, W)."""
        a, b = self[0](maps).chunk(2, dim=1)
        return torch.cat([a, self[2](self[1](b))], dim=1)


class Cell(nn.Module):
    """A residual cell with two branches.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels; each branch has a quarter of them.
        interactions: the first and the second interaction.
    """

    def __init__(self, in_channels: int, out_channels: int, interactions: Sequence[nn.Module]) -> None:
        super().__init__()
        middle = out_channels // 4
        self.reduce = pointwise_norm(in_channels, 2 * middle)
        self.scales1 = Scales(middle)
        self.scales2 = Scales(middle)
        self.interact1, self.interact2 = interactions
        self.expand = pointwise_norm(2 * middle, 2 * out_channels, groups=2, relu=False)
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = pointwise_norm(in_channels, out_channels, relu=False)

    def forward(self, x: Tensor, *inputs: Any) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W).

        Args:
            inputs: further inputs of the first interaction, followed by those of the second.
        """
        half = len(inputs) // 2
        maps = self.interact1(self.scales1(self.reduce(x)), *inputs[:half])
        maps = self.interact2(self.scales2(maps), *inputs[half:])
        a, b = self.expand(maps).chunk(2, dim=1)
        return F.relu(a + b + self.downsample(x))

    def stacked(self) -> list[nn.Conv2d]:
        """Return the convolutions that have the weights of both branches."""
        alone: list[Any] = [self.reduce, self.expand]
        light: list[Any] = [self.scales1[0], self.scales2[0]]
        return [layer.conv for layer in alone] + [conv for pair in light for conv in (pair.conv1, pair.conv2)]
