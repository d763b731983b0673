"""The first convolution of an OSNet whose norm is searched."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.spaces.osnet_ain.genotype import STEM_NORMS


class MixedStem(nn.Module):
    """A convolution, and the weighted sum of its outputs after each norm and ReLU. The norms have no learned scale.

    Args:
        conv: the convolution.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        norms = nn.BatchNorm2d, nn.InstanceNorm2d
        self.norms = nn.ModuleDict(
            {
                name: norm(conv.out_channels, affine=False)
                for name, norm in zip(STEM_NORMS, norms, strict=True)
            }
        )

    def forward(self, images: Tensor, mixing: Tensor | None, column: int | None = None) -> Tensor:
        """Map images (B, 3, H, W) to (B, C, H/2, W/2).

        Args:
            mixing: weights of the norms, (O,).
            column: computes only the norm in this column of the alphas; its weight is 1 without `mixing`.
        """
        x = self.conv(images)
        if column is not None:
            chosen: Tensor = F.relu(self.norms[STEM_NORMS[column]](x))
            return chosen if mixing is None else mixing[column] * chosen
        assert mixing is not None  # noqa: S101
        outputs = [F.relu(norm(x)) for norm in self.norms.values()]
        total: Tensor = sum(weight * output for weight, output in zip(mixing, outputs, strict=True))
        return total
