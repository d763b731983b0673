"""The supernet of the `osnet_ain` space: OSNet with all four blocks at each place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autoreid.layers.recompute import recompute
from autoreid.models.osnet import OmniScaleFrame
from autoreid.spaces.osnet_ain.blocks import MixedBlock

#: The one group of alphas.
GROUP = "blocks"


class OsnetAinSupernet(OmniScaleFrame):
    """All networks of the space at once; the mixing weights come from outside."""

    def __init__(self, width: float, num_identities: int, recomputes: bool) -> None:
        def build_block(position: int, in_channels: int, out_channels: int) -> MixedBlock:  # noqa: ARG001
            return MixedBlock(in_channels, out_channels)

        super().__init__(build_block, True, width, num_identities, affine=False)
        self.recomputes = recomputes

    def forward(self, images: Tensor, mixing: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embeds images.

        Args:
            images: (B, 3, H, W).
            mixing: (6, O) weights of the blocks, or (6,) the columns of the only ones to compute.

        Returns:
            The embedding (B, 512) and logits (B, identities).
        """
        recomputes = self.recomputes and torch.is_grad_enabled()

        def mix(position: int, block: nn.Module, x: Tensor) -> Tensor:
            inputs = (x, mixing[GROUP][position])
            output: Tensor = recompute(block, *inputs) if recomputes else block(*inputs)
            return output

        embedding: Tensor = self.fc(self.feature_map(images, mix).mean(dim=(2, 3)))
        return embedding, self.classifier(embedding)
