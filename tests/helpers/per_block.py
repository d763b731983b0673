"""Reference for the fused OSNet supernet: the four candidate blocks of each place computed one after the other."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS


class PerBlock(nn.ModuleDict):
    """The weighted sum of the outputs of four blocks, which are copies of the blocks of a fused one."""

    def __init__(self, fused: MixedBlock) -> None:
        super().__init__({name: copy.deepcopy(fused[name]) for name in OSNET_BLOCKS})
        self.train(fused.training)

    def forward(self, x: Tensor, mixing: Tensor, column: int | None = None) -> Tensor:
        """(B, in_channels, H, W) and (O,) weights -> (B, out_channels, H, W); computes all blocks or one column's."""
        if column is not None:
            chosen: Tensor = self[OSNET_BLOCKS[column]](x)
            return mixing[column] * chosen
        total: Tensor = sum(weight * block(x) for weight, block in zip(mixing, self.values(), strict=True))
        return total
