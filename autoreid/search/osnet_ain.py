"""The `osnet_ain` space: where instance norm belongs in OSNet's six blocks (arXiv 1910.06827, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autoreid.config import Search
from autoreid.layers.recompute import recompute
from autoreid.models.osnet import OmniScaleFrame
from autoreid.search.genotype import OSNET_BLOCKS, OsnetAinGenotype
from autoreid.search.osnet_blocks import MixedBlock
from autoreid.search.space import Choices

#: The one group of alphas.
_GROUP = "blocks"
#: The six blocks' names in the network, in order.
_PLACES = tuple(f"{stage}.{block}" for stage in ("conv2", "conv3", "conv4") for block in (0, 1))


class OsnetAinSpace:
    """One of four blocks at each of six places: 4,096 networks."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def choices(self) -> dict[str, Choices]:
        """A row for each block, two in each of three stages."""
        rows = tuple(f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in (1, 2))
        return {_GROUP: Choices(rows, OSNET_BLOCKS)}

    def watched(self) -> dict[str, tuple[str, ...]]:
        """How much of the mixture has instance norm at all."""
        return {"in_share": OSNET_BLOCKS[1:]}

    def build_supernet(self, num_identities: int) -> OsnetAinSupernet:
        """The supernet, with fresh weights from torch's generator."""
        recomputes = self.search.activation_checkpointing == "cell"
        return OsnetAinSupernet(self.search.width, num_identities, recomputes)

    def genotype(self, probabilities: Mapping[str, Tensor]) -> OsnetAinGenotype:
        """Reads out the most probable block at each place; of equal ones the first."""
        return OsnetAinGenotype.of_blocks(
            [OSNET_BLOCKS[column] for column in probabilities[_GROUP].argmax(-1).tolist()]
        )

    def has_collapsed(self, genotype: OsnetAinGenotype) -> bool:  # noqa: ARG002
        """Never: no block is a short cut."""
        return False

    def inherited(self, weights: Mapping[str, Tensor], genotype: OsnetAinGenotype) -> dict[str, Tensor]:
        """The chosen blocks' entries of a supernet's weights, and all shared ones, as the derived network has them."""
        chosen = dict(zip(_PLACES, genotype.blocks, strict=True))
        found = {}
        for name, value in weights.items():
            stage, block, *rest = name.split(".", 3)
            candidate = chosen.get(f"{stage}.{block}")
            if candidate is None:
                found[name] = value
            elif rest[0] == candidate:
                found[f"{stage}.{block}.{rest[1]}"] = value
        return found


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
            inputs = (x, mixing[_GROUP][position])
            output: Tensor = recompute(block, *inputs) if recomputes else block(*inputs)
            return output

        embedding: Tensor = self.fc(self.feature_map(images, mix).mean(dim=(2, 3)))
        return embedding, self.classifier(embedding)
