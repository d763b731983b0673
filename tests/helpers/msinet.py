"""MSINet in the authors' layout: a module for each layer of a branch and for each interaction; and their numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.spaces.msinet.cells import Cell
from autoreid.spaces.msinet.derived import from_authors
from autoreid.spaces.msinet.genotype import INTERACTIONS


@cache
def fixture() -> dict[str, Any]:
    """Return what the authors' code computes."""
    return json.loads((Path(__file__).parents[1] / "data/msinet.json").read_text())


def of_supernet(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' weights of a supernet, or of one of its cells, by their names in this package."""
    stacked = from_authors({f".{_candidate(name)}": value for name, value in weights.items()})
    found = {name.removeprefix("."): value for name, value in stacked.items()}
    return {re.sub(r"^(head|classifier)\.", _in_neck, name): value for name, value in found.items()}


def _candidate(name: str) -> str:
    """Return the name of an interaction's weight with the interaction's name instead of its number."""
    return re.sub(r"\b_op([23])s\.(\d)", lambda match: f"_op{match[1]}.{INTERACTIONS[int(match[2])]}", name)


def _in_neck(match: re.Match[str]) -> str:
    return "neck.norm." if match[1] == "head" else "neck.classifier."


def _pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    layers.bn = nn.BatchNorm2d(out_channels)
    return layers


def _light(channels: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
    layers.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    layers.bn = nn.BatchNorm2d(channels)
    layers.relu = nn.ReLU()
    return layers


class _Keep(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a, b


class _Exchange(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return b, a


class _Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, *maps: Tensor) -> list[Tensor]:
        pooled = [x.mean((2, 3), keepdim=True) for x in maps]
        return [x * self.fc2(self.fc1(y).relu()).sigmoid() for x, y in zip(maps, pooled, strict=True)]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self._one(a, b), self._one(b, a)

    def _one(self, own: Tensor, other: Tensor) -> Tensor:
        energy = torch.einsum("bchw,bdhw->bcd", own, other)
        weights = (energy.amax(2, keepdim=True) - energy).softmax(2)
        return own + self.gamma * torch.einsum("bcd,bdhw->bchw", weights, own)


class PlainCell(nn.Module):
    """A supernet's cell with one module for each layer and candidate, and the weights of a fused one."""

    # Any, because mypy does not know the types of modules that are added by name.
    conv2a: Any
    conv2b: Any
    conv3a: Any
    conv3b: Any
    _op2s: Any
    _op3s: Any

    def __init__(self, fused: Any) -> None:
        super().__init__()
        before, middle = fused.reduce.conv.in_channels, fused.reduce.conv.out_channels // 2
        after = fused.expand.conv.out_channels // 2
        self.conv1a, self.conv1b = _pointwise(before, middle), _pointwise(before, middle)
        for half in (2, 3):
            self.add_module(f"conv{half}a", _light(middle))
            self.add_module(f"conv{half}b", nn.Sequential(*(_light(middle) for _ in range(3))))
            candidates = [_Keep(), _Gate(middle), _Attention(), _Exchange()]
            self.add_module(f"_op{half}s", nn.ModuleList(candidates))
        self.conv4a, self.conv4b = _pointwise(middle, after), _pointwise(middle, after)
        self.downsample = _pointwise(before, after) if before != after else nn.Identity()
        weights = fused.state_dict()
        self.to(fused.expand.conv.weight)
        self.load_state_dict({name: self._part(name, x, weights) for name, x in self.state_dict().items()})
        self.train(fused.training)

    def _part(self, name: str, like: Tensor, fused: Mapping[str, Tensor]) -> Tensor:
        """Return the share of one branch in an entry of the fused cell, or an entry that both share."""
        (ours,) = of_supernet({name: like})
        whole = fused[ours]
        second = re.match(r"conv[14]b|conv[23]b\.0", name) is not None
        return whole if whole.shape == like.shape else whole.chunk(2)[second]

    def forward(self, x: Tensor, first: Tensor, _: None, second: Tensor, __: None) -> Tensor:
        """(B, in_channels, H, W) and weights (O,) of both interactions -> (B, out_channels, H, W)."""
        a, b = self.conv1a(x).relu(), self.conv1b(x).relu()
        a, b = self._mixed(self._op2s, first, self.conv2a(a), self.conv2b(b))
        a, b = self._mixed(self._op3s, second, self.conv3a(a), self.conv3b(b))
        return F.relu(self.conv4a(a) + self.conv4b(b) + self.downsample(x))

    def _mixed(self, candidates: nn.ModuleList, weights: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
        outputs = [candidate(a, b) for candidate in candidates]
        return [sum(w * pair[side] for w, pair in zip(weights, outputs, strict=True)) for side in (0, 1)]


def plain_cells(supernet: Any) -> None:
    """Replace the fused cells of a supernet by plain ones."""
    for place, cell in enumerate(supernet.cells):
        if isinstance(cell, Cell):
            supernet.cells[place] = PlainCell(cell)
