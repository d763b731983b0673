"""The part-based convolutional baseline, PCB (arXiv 1711.09349)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.errors import ConfigError
from autoreid.layers.initialisation import initialise
from autoreid.layers.pooling import average_pool
from autoreid.models.resnet import ResNetBackbone
from autoreid.models.weights import rename


class PCB(ResNetBackbone):
    """ResNet-50 with last stride 1; its map is averaged over M horizontal parts, each with its own classifier.

    The parts share one 1×1 convolution from 2048 to 256 channels with norm and ReLU, preceded by dropout.
    As published, the loss is the sum of the parts' cross-entropies; there is no loss on the embedding.

    Args:
        num_identities: number of outputs of each classifier.
        parts: M; the map's height need not be a multiple of it, as in adaptive pooling.
        dropout: probability of dropping a pooled channel in training.
    """

    def __init__(self, num_identities: int, parts: int = 6, dropout: float = 0.5) -> None:
        if parts < 1:
            raise ConfigError(f"parts = {parts!r}: must be at least 1")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout = {dropout!r}: must be at least 0 and less than 1")
        super().__init__(last_stride=1)
        reduced = 256
        self.parts = parts
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Sequential(
            nn.Conv2d(self.channels, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU(inplace=True)
        )
        self.classifier = nn.ModuleList(nn.Linear(reduced, num_identities) for _ in range(parts))
        initialise(self.reduce)
        initialise(self.classifier)

    def head(self) -> list[nn.Module]:
        """Return the parts' shared convolution and their classifiers."""
        return [self.reduce, self.classifier]

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return torchreid's weights by their names in this network."""
        return rename(self, weights, [(r"^conv5\.layers\.", "reduce.")])

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images (B, 3, H, W).

        Returns:
            In evaluation mode, the embedding (B, 2048·M): the parts' pooled vectors, each normalised to length 1,
            ordered by channel, then part. In training mode, (embedding, logits (B, identities, M)); this is the
            order that `torch.nn.functional.cross_entropy` expects for labels (B, M).
        """
        pooled_BCM1 = average_pool(self.feature_map(images), self.parts, 1)
        embedding = F.normalize(pooled_BCM1, dim=1).flatten(1)
        if not self.training:
            return embedding
        parts = self.reduce(self.dropout(pooled_BCM1)).squeeze(3).unbind(dim=2)
        logits = [classify(part) for classify, part in zip(self.classifier, parts, strict=True)]
        return embedding, torch.stack(logits, dim=2)
