"""The macro structure of supernets and derived networks: the stem, and the stages of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

STEMS = ("resnet", "darts")


class CellPlan(NamedTuple):
    """The position and the channels of a cell in the network.

    Attributes:
        kind: "normal" or "reduce".
        stage: index of the stage, from 0.
        in_channels: channels of the two inputs: the outputs of the cell before the previous one and of the previous
            cell.
        channels: C of each node.
        after_reduction: whether the previous cell is a reduction cell. The first input then has twice the resolution
            of the second one.
        out_channels: C times the number of nodes.
    """

    kind: str
    stage: int
    in_channels: tuple[int, int]
    channels: int
    after_reduction: bool
    out_channels: int


def build_stem(kind: str, channels: int) -> nn.Sequential:
    """Build the first layers, with 3·channels outputs.

    Args:
        kind: "resnet", a 7×7 convolution of stride 2 and a max pool, for 1/4 of the resolution; or "darts", a 3×3
            convolution at full resolution.
    """
    wide = 3 * channels
    if kind == "resnet":
        return nn.Sequential(
            nn.Conv2d(3, wide, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
    return nn.Sequential(nn.Conv2d(3, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide))


def plan_cells(channels: int, cells_per_stage: Sequence[int], nodes: Mapping[str, int]) -> list[CellPlan]:
    """Return the cells that follow the stem, in order.

    Args:
        channels: C of the first stage. Each later stage begins with a reduction cell, which doubles it.
        cells_per_stage: number of cells in each stage.
        nodes: number of nodes in each kind of cell.
    """
    plans: list[CellPlan] = []
    in_channels = (3 * channels, 3 * channels)
    for stage, count in enumerate(cells_per_stage):
        for position in range(count):
            kind = "reduce" if stage > 0 and position == 0 else "normal"
            channels *= 2 if kind == "reduce" else 1
            after_reduction = bool(plans) and plans[-1].kind == "reduce"
            out_channels = nodes[kind] * channels
            plans.append(CellPlan(kind, stage, in_channels, channels, after_reduction, out_channels))
            in_channels = (in_channels[1], out_channels)
    return plans
