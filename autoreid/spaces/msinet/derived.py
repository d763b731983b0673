"""The network that a genotype of the `msinet` space describes, and the names of the authors' weights in it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autoreid.errors import ConfigError
from autoreid.layers.pooling import average_pool, build_pooling
from autoreid.models.weights import COUNTER
from autoreid.spaces.drawing import Drawing
from autoreid.spaces.msinet.body import MsinetBody
from autoreid.spaces.msinet.drawing import cells_drawing
from autoreid.spaces.msinet.genotype import PUBLISHED, MsinetGenotype
from autoreid.spaces.msinet.interactions import build_interaction
from autoreid.spaces.space import Derived

#: Patterns of the authors' names and the names here. Entries that get the same name belong to branches a and b.
_AUTHORS_NAMES = (
    (r"\.conv1[ab]\.", ".reduce."),
    (r"\.conv2(a|b\.0)\.", ".scales1.0."),
    (r"\.conv2b\.", ".scales1."),
    (r"\._op2\.", ".interact1."),
    (r"\.conv3(a|b\.0)\.", ".scales2.0."),
    (r"\.conv3b\.", ".scales2."),
    (r"\._op3\.", ".interact2."),
    (r"\.conv4[ab]\.", ".expand."),
    (r"^f_conv\.", "local_conv."),
    (r"^f_head\.", "local_head.norm."),
    (r"^f_(fc|classifier)\.", r"local_head.\1."),
    (r"^head\.", "global_head.norm."),
    (r"^(fc|classifier)\.", r"global_head.\1."),
)


def from_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of the authors' weights, and stack those of the two branches.

    Entries that have a name of this network already keep it; others do not take it from them.
    """
    branches: dict[str, list[Tensor]] = defaultdict(list)
    for name in sorted(weights):  # a before b
        ours = _our_name(name)
        branches[name if ours in weights else ours].append(weights[name])
    return {name: _stacked(name, parts) for name, parts in branches.items()}


def _stacked(name: str, parts: list[Tensor]) -> Tensor:
    """Stack the weights of the branches. Both have the same counter of batches."""
    alike = len({part.shape for part in parts}) == 1  # otherwise, loading refuses the shape of the first
    return torch.cat(parts) if alike and len(parts) > 1 and not name.endswith(COUNTER) else parts[0]


def _our_name(name: str) -> str:
    for pattern, ours in _AUTHORS_NAMES:
        name = re.sub(pattern, ours, name)
    return name


class Head(nn.Module):
    """A linear layer, batch norm and a classifier. As in a BNNeck, the norm's bias is not trained."""

    def __init__(self, channels: int, num_identities: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(channels, num_identities)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, D) -> logits (B, identities)."""
        logits: Tensor = self.classifier(self.norm(self.fc(embedding)))
        return logits


class MSINet(MsinetBody, Derived):
    """MSINet with the twelve interactions of a genotype (arXiv 2303.07065).

    Its embedding has two parts, each with a head of its own: the average of the last map, and the averages of the upper
    and the lower half of the map before it, which has a smaller receptive field.

    Args:
        num_identities: number of outputs of each classifier.
        genotype: the twelve interactions.
        width: factor of all channels except the 256 of the second part.
        pooling: of the last map, a name from `POOLINGS`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self, num_identities: int, genotype: MsinetGenotype, width: float = 1.0, pooling: str = "average"
    ) -> None:
        if not isinstance(width, int | float) or width < 0.25:
            raise ConfigError(f"derived: width = {width!r}: must be at least 0.25")

        def build_interactions(number: int, channels: int) -> Sequence[nn.Module]:
            return [build_interaction(name, channels) for name in genotype.cells[number]]

        super().__init__(build_interactions, width)
        self.genotype: MsinetGenotype = genotype
        self.global_head = Head(self.channels[3], num_identities)
        self.local_conv = nn.Conv2d(self.channels[2], 128, 1)
        self.local_head = Head(2 * 128, num_identities)
        self.pool = build_pooling(pooling)
        self.initialise()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images (B, 3, H, W).

        Returns:
            In evaluation mode, the embedding (B, 768). In training mode, the embedding and the logits of both heads,
            (B, identities, 2).
        """
        middle, last = self.feature_maps(images)
        whole = self.pool(last)
        # The average of the convolution's output, as published, is the convolution of the average.
        pooled = average_pool(middle, 2, 1).split(1, dim=2)
        halves = torch.cat([self.local_conv(half).flatten(1) for half in pooled], dim=1)
        embedding = torch.cat([whole, halves], dim=1)
        if not self.training:
            return embedding
        return embedding, torch.stack([self.global_head(whole), self.local_head(halves)], dim=2)

    def head(self) -> list[nn.Module]:
        """Return both heads, the pooling of the first, and the convolution that the second one begins with."""
        return [self.pool, self.global_head, self.local_conv, self.local_head]

    def last_map(self) -> nn.Module:
        """Return the last cell."""
        return self.cells[-1]

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the authors' weights by their names in this network, those of both branches stacked."""
        return from_authors(weights)

    def drawing(self, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
        """Return a drawing of all cells."""
        return cells_drawing(self.genotype.cells, f"{caption}   {size}", shapes, self.pool.label)


def msinet_x1_0(num_identities: int, pooling: str = "average") -> MSINet:
    """Build MSINet with the interactions that its authors found on MSMT17."""
    return MSINet(num_identities, PUBLISHED, pooling=pooling)
