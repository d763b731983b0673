"""The interactions between the two branches of a cell (arXiv 2303.07065, section 3.3).

The maps of both branches are stacked along the channels: (B, 2·C, H, W), first branch a, then branch b.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from autoreid.layers.autocast import without_autocast
from autoreid.models.osnet import ChannelGate
from autoreid.spaces.msinet.genotype import INTERACTIONS


class Exchange(nn.Module):
    """`exc`: the branches change places."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 2·C, H, W) -> (B, 2·C, H, W)."""
        a, b = maps.chunk(2, dim=1)
        return torch.cat([b, a], dim=1)


class SharedGate(ChannelGate):
    """`ag`: OSNet's channel gate, with the same weights for both branches."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 2·C, H, W) -> (B, 2·C, H, W)."""
        return super().forward(_by_branch(maps)).view_as(maps)


class CrossAttention(nn.Module):
    """`cross_att`: attention between channels, by how little they agree with the channels of the other branch.

    The result is added to the maps, times a learned factor that starts at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def attention(self, maps: Tensor) -> Tensor:
        """(B, 2·C, H, W) -> the attention of each branch, (B, 2, C, C), in float32 or float64."""
        with without_autocast(maps.device.type):
            # In half precision, sums over all pixels would be too coarse for the exponential function.
            wide = maps if maps.dtype == torch.float64 else maps.float()
            a, b = _as_vectors(wide).unbind(1)
            energy = a @ b.transpose(1, 2)
            # The energies of b are those of a, transposed.
            of_a, of_b = (-energy).softmax(2), (-energy).softmax(1).transpose(1, 2)
            return torch.stack([of_a, of_b], dim=1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, 2·C, H, W) -> (B, 2·C, H, W)."""
        attended = self.attention(maps).to(maps.dtype) @ _as_vectors(maps)
        return maps + self.gamma * attended.view_as(maps)


def build_interaction(name: str, channels: int) -> nn.Module:
    """Build an interaction between two branches with C channels each, by its name in `INTERACTIONS`."""
    match name:
        case "none":
            return nn.Identity()
        case "ag":
            return SharedGate(channels)
        case "cross_att":
            return CrossAttention()
        case "exc":
            return Exchange()
    raise ValueError(f"{name}: not an interaction")


class MixedInteraction(nn.ModuleDict):
    """The weighted sum of all four interactions.

    All but `exc` are linear in the maps of a branch once their gate and attention are known. So the sum is one
    C × C matrix for each image and branch, times the map, plus the other branch's map. No candidate's own map is
    computed or kept for the backward pass.
    """

    def __init__(self, channels: int) -> None:
        super().__init__({name: build_interaction(name, channels) for name in INTERACTIONS})

    def forward(self, maps: Tensor, mixing: Tensor | None, column: int | None = None) -> Tensor:
        """(B, 2·C, H, W) -> (B, 2·C, H, W).

        Args:
            maps: of both branches.
            mixing: weights of the interactions, (O,).
            column: computes only the interaction in this column of the alphas; its weight is 1 without `mixing`.
        """
        if column is not None:
            chosen: Tensor = self[INTERACTIONS[column]](maps)
            return chosen if mixing is None else mixing[column] * chosen
        assert mixing is not None  # noqa: S101
        weights = dict(zip(INTERACTIONS, mixing.unbind(), strict=True))
        vectors = _as_vectors(maps)
        # The product with x leaves x itself in memory, and not x with its branches exchanged.
        exchanged = (weights["exc"] * vectors).flip(1)
        mixed = self._matrices(maps, weights).to(vectors.dtype) @ vectors + exchanged
        return mixed.view_as(maps)

    def _matrices(self, maps: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """Return the sum of `none`, `ag` and `cross_att` as matrices, (B, 2, C, C)."""
        gate, cross = cast(SharedGate, self["ag"]), cast(CrossAttention, self["cross_att"])
        scales = gate.scales(_by_branch(maps)).view(len(maps), 2, -1)
        attention = weights["cross_att"] * cross.gamma * cross.attention(maps)
        identity = weights["none"] + weights["cross_att"]
        return torch.diag_embed(identity + weights["ag"] * scales) + attention


def _by_branch(maps: Tensor) -> Tensor:
    """(B, 2·C, H, W) -> (2·B, C, H, W)."""
    return maps.unflatten(1, (2, -1)).flatten(0, 1)


def _as_vectors(maps: Tensor) -> Tensor:
    """(B, 2·C, H, W) -> (B, 2, C, H·W)."""
    return maps.unflatten(1, (2, -1)).flatten(3)
