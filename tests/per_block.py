"""The oracle of the fused OSNet supernet: at each place the four blocks by themselves, one after the other."""

from __future__ import annotations

from torch import Tensor, nn

from autoreid.models.osnet import OSBLOCKS, OSBlock
from autoreid.search.genotype import OSNET_BLOCKS
from autoreid.search.osnet_blocks import MixedBlock


class PerBlock(nn.ModuleDict):
    """The weighted sum of the blocks' outputs, with a fused one's weights and statistics."""

    def __init__(self, fused: MixedBlock) -> None:
        channels = fused.in_channels, fused.out_channels
        blocks = {name: OSBlock(*channels, *OSBLOCKS[name], affine=False) for name in OSNET_BLOCKS}
        super().__init__(blocks)
        self.to(next(fused.parameters())).train(fused.training)
        for name, block in blocks.items():
            block.load_state_dict(fused.weights_of(name, fused.state_dict()))

    def forward(self, x: Tensor, mixing: Tensor) -> Tensor:
        """(B, in_channels, H, W) and (N,) weights, or () a column -> (B, out_channels, H, W)."""
        if not mixing.dim():
            chosen: Tensor = self[OSNET_BLOCKS[int(mixing)]](x)
            return chosen
        total: Tensor = sum(weight * block(x) for weight, block in zip(mixing, self.values(), strict=True))
        return total
