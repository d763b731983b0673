"""The network that a genotype of the `osnet_ain` space describes."""

from __future__ import annotations

from collections.abc import Mapping

from autoreid.errors import ConfigError
from autoreid.models.osnet import OSNet
from autoreid.spaces.drawing import Drawing
from autoreid.spaces.osnet_ain.drawing import blocks_drawing
from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype
from autoreid.spaces.space import Derived


class DerivedOSNet(OSNet, Derived):
    """OSNet with the six blocks and the stem of a genotype.

    Args:
        num_identities: number of outputs of the classifier.
        genotype: the six blocks, and the norm after the first convolution.
        width: factor of all channels except those of the embedding.
        pooling: a name from `POOLINGS`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        num_identities: int,
        genotype: OsnetAinGenotype,
        width: float = 1.0,
        pooling: str = "average",
    ) -> None:
        if not isinstance(width, int | float) or width < 0.25:
            raise ConfigError(f"derived: width = {width!r}: must be at least 0.25")
        super().__init__(genotype.blocks, genotype.stem == "instance_norm", width, num_identities, pooling)
        self.genotype: OsnetAinGenotype = genotype

    def drawing(self, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
        """Return a drawing of all blocks."""
        stem_in = self.genotype.stem == "instance_norm"
        return blocks_drawing(self.genotype.stages, stem_in, f"{caption}   {size}", shapes, self.pool.label)
