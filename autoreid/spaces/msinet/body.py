"""The layers that supernet and derived networks share (arXiv 2303.07065, section 3.3 and table 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoreid.layers.initialisation import initialise
from autoreid.layers.recompute import recompute
from autoreid.models.network import Network
from autoreid.models.osnet import conv_norm
from autoreid.spaces.msinet.cells import Cell, pointwise_norm
from autoreid.spaces.msinet.genotype import CELLS

#: Places of the six cells in `MsinetBody.cells`; the others halve the map.
POSITIONS = (0, 1, 3, 4, 6, 7)


class MsinetBody(Network):
    """An OSNet-like body: a stem of stride 4, and three stages of two cells; the map is halved after the first two.

    Args:
        build_interactions: called with a cell's number (0 to 5) and the channels of its branches; returns both
            interactions of the cell.
        width: factor of the channels 64, 256, 384 and 512.
        recomputes: whether the backward pass recomputes the cells instead of keeping their intermediate results.
    """

    def __init__(
        self,
        build_interactions: Callable[[int, int], Sequence[nn.Module]],
        width: float,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        self.channels = [int(width * channels) for channels in (64, 256, 384, 512)]
        self.recomputes = recomputes
        self.conv1 = conv_norm(3, self.channels[0], nn.BatchNorm2d(self.channels[0]), kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.cells = nn.ModuleList()
        for number in range(CELLS):
            before, after = self.channels[(number + 1) // 2], self.channels[number // 2 + 1]
            self.cells.append(Cell(before, after, build_interactions(number, after // 4)))
            if number in (1, 3):
                self.cells.append(nn.Sequential(pointwise_norm(after, after), nn.AvgPool2d(2)))

    def initialise(self) -> None:
        """Initialise the weights as the authors do: like OSNet's, each branch for itself."""
        initialise(self)
        for position in POSITIONS:
            for conv in cast(Cell, self.cells[position]).stacked():
                conv.weight.data.mul_(2**0.5)  # the fan out is that of one branch, not of both

    def feature_maps(
        self, images: Tensor, inputs: Sequence[Sequence[Any]] = ((),) * CELLS
    ) -> tuple[Tensor, Tensor]:
        """Return the maps after the second and the third stage, (B, C, H/16, W/16).

        Args:
            images: (B, 3, H, W).
            inputs: further inputs of each cell.
        """
        further = dict(zip(POSITIONS, inputs, strict=True))
        recomputes = self.recomputes and torch.is_grad_enabled()
        x = middle = self.maxpool(self.conv1(images))
        for position, layer in enumerate(self.cells):
            others = further.get(position, ())
            x = recompute(layer, x, *others) if recomputes and position in further else layer(x, *others)
            if position == 5:
                middle = x
        return middle, x
