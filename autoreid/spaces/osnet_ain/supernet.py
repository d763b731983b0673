"""The supernet of the `osnet_ain` space: OSNet with a mixture of all four blocks at each position.

The norm after the first convolution is a mixture, too, if it is searched.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from autoreid.models.osnet import OmniScaleFrame
from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.osnet_ain.stem import MixedStem
from autoreid.spaces.space import Mixing, Sample, Supernet

#: The groups of alphas.
BLOCKS, STEM = "blocks", "stem"


class OsnetAinSupernet(OmniScaleFrame, Supernet):
    """The supernet. Its six blocks are mixtures with weights (6, O), and a searched stem is one with weights (1, O)."""

    def __init__(self, width: float, num_identities: int, recomputes: bool, searches_stem: bool) -> None:
        def build_block(position: int, in_channels: int, out_channels: int) -> MixedBlock:  # noqa: ARG001
            return MixedBlock(in_channels, out_channels)

        super().__init__(build_block, True, width, num_identities, affine=False, recomputes=recomputes)
        self.searches_stem = searches_stem
        if searches_stem:
            self.conv1 = MixedStem(cast(nn.Conv2d, self.conv1.conv))

    def forward(
        self, images: Tensor, mixing: Mixing | None = None, sample: Sample | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images, as described in `Supernet`. The embedding is (B, 512)."""
        stem = _inputs(STEM, 1, mixing, sample)[0] if self.searches_stem else ()
        features = self.feature_map(images, _inputs(BLOCKS, 6, mixing, sample), stem)
        embedding: Tensor = self.fc(features.mean(dim=(2, 3)))
        return (embedding, self.classifier(embedding)) if self.training else embedding


def _inputs(
    group: str, rows: int, mixing: Mixing | None, sample: Sample | None
) -> list[tuple[Tensor | None, int | None]]:
    """The weights and the column of each row of a group."""
    weights = [None] * rows if mixing is None else mixing[group].unbind(0)
    columns = [None] * rows if sample is None else sample[group]
    return list(zip(weights, columns, strict=True))
