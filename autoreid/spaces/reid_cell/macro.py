"""How cells follow each other: the stem and the stages that supernets and derived networks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

STEMS = ("resnet", "darts")


class CellPlan(NamedTuple):
    """One cell's place in the network.

    Attributes:
        kind: "normal" or "reduce".
        stage: from 0.
        in_channels: of the outputs of the cell before the last and of the last one.
        channels: C of each node.
        after_reduction: whether the older input still has twice the resolution.
        out_channels: C times the number of nodes.
    """

    kind: str
    stage: int
    in_channels: tuple[int, int]
    channels: int
    after_reduction: bool
    out_channels: int


def build_stem(kind: str, channels: int) -> nn.Sequential:
    """The first layers, to 3·channels: `resnet` 7×7 stride 2 and a pool, to 1/4 resolution; `darts` 3×3 stride 1."""
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
    """The cells that follow a stem, in order.

    Args:
        channels: C of the first stage; each later stage begins with a reduction cell, which doubles it.
        cells_per_stage: how many cells each stage has.
        nodes: nodes of each kind of cell.
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
