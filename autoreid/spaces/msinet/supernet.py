"""The supernet of the `msinet` space: a mixture of all four interactions at each of twelve places."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from autoreid.layers.heads import BNNeck
from autoreid.spaces.msinet.body import MsinetBody
from autoreid.spaces.msinet.genotype import CHOICES
from autoreid.spaces.msinet.interactions import MixedInteraction
from autoreid.spaces.space import Mixing, Sample, Supernet

#: The only group of alphas.
GROUP = "interactions"


class MsinetSupernet(MsinetBody, Supernet):
    """The supernet. Its twelve interactions are mixtures with weights (12, O).

    No candidate has a norm, so those of the layers between keep their scale and shift, and a derived network inherits
    all weights of the body.
    """

    def __init__(self, width: float, num_identities: int, recomputes: bool) -> None:
        def build_interactions(number: int, channels: int) -> Sequence[nn.Module]:  # noqa: ARG001
            return MixedInteraction(channels), MixedInteraction(channels)

        super().__init__(build_interactions, width, recomputes)
        self.neck = BNNeck(self.channels[-1], num_identities)
        self.initialise()

    def forward(
        self, images: Tensor, mixing: Mixing | None = None, sample: Sample | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images, as described in `Supernet`. The embedding is the average of the last map, (B, 512)."""
        weights = [None] * CHOICES if mixing is None else mixing[GROUP].unbind(0)
        columns = [None] * CHOICES if sample is None else sample[GROUP]
        rows = list(zip(weights, columns, strict=True))
        inputs = [(*first, *second) for first, second in zip(rows[::2], rows[1::2], strict=True)]
        embedding = self.feature_maps(images, inputs)[-1].mean(dim=(2, 3))
        return (embedding, self.neck(embedding)) if self.training else embedding

    def head(self) -> list[nn.Module]:
        """Return the neck."""
        return [self.neck]
