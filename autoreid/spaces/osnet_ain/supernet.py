"""The supernet of the `osnet_ain` space: OSNet with a mixture of all four blocks at each position."""

from __future__ import annotations

from torch import Tensor

from autoreid.models.osnet import OmniScaleFrame
from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.space import Mixing, Sample, Supernet

#: The only group of alphas.
GROUP = "blocks"


class OsnetAinSupernet(OmniScaleFrame, Supernet):
    """The supernet. Its six blocks are mixtures with weights (6, O)."""

    def __init__(self, width: float, num_identities: int, recomputes: bool) -> None:
        def build_block(position: int, in_channels: int, out_channels: int) -> MixedBlock:  # noqa: ARG001
            return MixedBlock(in_channels, out_channels)

        super().__init__(build_block, True, width, num_identities, affine=False, recomputes=recomputes)

    def forward(
        self, images: Tensor, mixing: Mixing | None = None, sample: Sample | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images, as described in `Supernet`. The embedding is (B, 512)."""
        weights = [None] * 6 if mixing is None else mixing[GROUP].unbind(0)
        columns = [None] * 6 if sample is None else sample[GROUP]
        inputs = list(zip(weights, columns, strict=True))
        embedding: Tensor = self.fc(self.feature_map(images, inputs).mean(dim=(2, 3)))
        return (embedding, self.classifier(embedding)) if self.training else embedding
