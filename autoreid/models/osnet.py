"""The omni-scale networks: OSNet, OSNet-IBN (arXiv 1905.00953) and OSNet-AIN (arXiv 1910.06827)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.errors import ConfigError
from autoreid.layers.initialisation import initialise
from autoreid.layers.pooling import build_pooling
from autoreid.layers.recompute import recompute
from autoreid.models.network import Network
from autoreid.models.weights import rename

#: The candidate blocks in OSNet-AIN's search, as OSBlock's flags (in_inside, in_after).
OSBLOCKS: dict[str, tuple[bool, bool]] = {
    "plain": (False, False),
    "in_inside": (True, False),
    "in_after": (False, True),
    "in_both": (True, True),
}

#: Names in torchreid and the names here; see `rename`.
_TORCHREIDS_NAMES = (
    (r"^conv([23])\.2\.", r"pool\1."),  # in OSNet, the transition is part of the stage
    (r"\.conv2a\.", ".streams.0.0."),  # in OSNet, the stream of one light convolution has no index
    (r"\.conv2b\.", ".streams.1."),
    (r"\.conv2c\.", ".streams.2."),
    (r"\.conv2d\.", ".streams.3."),
    (r"\.conv2\.(\d)\.layers\.", r".streams.\1."),  # the streams of OSNet-AIN
    (r"\.IN\.", ".norm_inside."),
    (r"\.IN\.", ".norm_after."),
)

#: Number of streams in a block; they have one to four light convolutions.
STREAMS = 4


def conv_norm(
    in_channels: int, out_channels: int, norm: nn.Module, kernel: int = 1, stride: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution without bias, a norm, and optionally ReLU; keeps the size if the stride is 1."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=norm)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _light_conv(channels: int, affine: bool) -> nn.Sequential:
    """The Lite 3×3 convolution (section 3.1 of OSNet): pointwise, then depthwise, without activation between."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, channels, 1, bias=False),
            conv2=nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            bn=nn.BatchNorm2d(channels, affine=affine),
            relu=nn.ReLU(inplace=True),
        )
    )


class ChannelGate(nn.Module):
    """The unified aggregation gate (section 3.2): scales each channel, depending on the means of all channels."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)

    def scales(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the factor of each channel, (B, C, 1, 1)."""
        factors: Tensor = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return factors

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.scales(x)


class OSBlock(nn.Module):
    """The omni-scale residual block: four streams with receptive fields of 3, 5, 7 and 9 pixels, one shared gate.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels; the streams have a quarter of them.
        in_inside: replace the batch norm at the end of the residual, before the addition, by instance norm.
        in_after: apply instance norm after the addition.
        affine: whether norms have a learnable scale and shift; False in a search.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_inside: bool = False,
        in_after: bool = False,
        affine: bool = True,
    ) -> None:
        super().__init__()
        middle = out_channels // 4

        def batch_norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, affine=affine)

        def instance_norm(wanted: bool) -> nn.Module:
            return nn.InstanceNorm2d(out_channels, affine=affine) if wanted else nn.Identity()

        self.conv1 = conv_norm(in_channels, middle, batch_norm(middle))
        self.streams = nn.ModuleList(
            nn.Sequential(*(_light_conv(middle, affine) for _ in range(depth)))
            for depth in range(1, STREAMS + 1)
        )
        self.gate = ChannelGate(middle)
        residual_norm = nn.Identity() if in_inside else batch_norm(out_channels)
        self.conv3 = conv_norm(middle, out_channels, residual_norm, relu=False)
        self.downsample: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.downsample = conv_norm(in_channels, out_channels, batch_norm(out_channels), relu=False)
        self.norm_inside = instance_norm(in_inside)
        self.norm_after = instance_norm(in_after)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        narrow = self.conv1(x)
        gated = [self.gate(stream(narrow)) for stream in self.streams]
        residual = self.norm_inside(self.conv3(gated[0] + gated[1] + gated[2] + gated[3]))
        return F.relu(self.norm_after(residual + self.downsample(x)))


class Stage(nn.Sequential):
    """Two consecutive blocks.

    Args:
        recomputes: whether the backward pass recomputes the blocks instead of keeping their intermediate results.
    """

    def __init__(self, recomputes: bool, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.recomputes = recomputes

    def forward(self, x: Tensor, *inputs: Sequence[Any]) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W).

        Args:
            inputs: further inputs of each block; omitted if the blocks have none.
        """
        recomputes = self.recomputes and torch.is_grad_enabled()
        for block, others in zip(self, inputs or ((), ()), strict=True):
            x = recompute(block, x, *others) if recomputes else block(x, *others)
        return x


class OmniScaleFrame(Network):
    """An omni-scale network except for its six blocks, two in each of three stages; the embedding has size 512.

    Args:
        build_block: called with the block's position (0 to 5) and its numbers of input and output channels.
        stem_in: use instance norm instead of batch norm after the first convolution.
        width: factor for all channels except the embedding's.
        num_identities: number of outputs of the classifier.
        affine: whether norms have a learnable scale and shift; False in a search.
        recomputes: as in `Stage`.
    """

    def __init__(
        self,
        build_block: Callable[[int, int, int], nn.Module],
        stem_in: bool,
        width: float,
        num_identities: int,
        affine: bool = True,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4 = (int(width * channels) for channels in (64, 256, 384, 512))

        def stage(first: int, in_channels: int, out_channels: int) -> Stage:
            return Stage(
                recomputes,
                build_block(first, in_channels, out_channels),
                build_block(first + 1, out_channels, out_channels),
            )

        def pointwise(channels: int) -> nn.Sequential:
            return conv_norm(channels, channels, nn.BatchNorm2d(channels, affine=affine))

        stem_norm = nn.InstanceNorm2d if stem_in else nn.BatchNorm2d
        self.conv1: nn.Module = conv_norm(3, c1, stem_norm(c1, affine=affine), kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = stage(0, c1, c2)
        self.pool2 = nn.Sequential(pointwise(c2), nn.AvgPool2d(2))
        self.conv3 = stage(2, c2, c3)
        self.pool3 = nn.Sequential(pointwise(c3), nn.AvgPool2d(2))
        self.conv4 = stage(4, c3, c4)
        self.conv5 = pointwise(c4)
        norm = nn.BatchNorm1d(512, affine=affine)
        self.fc = nn.Sequential(nn.Linear(c4, 512), norm, nn.ReLU(inplace=True))
        self.classifier = nn.Linear(512, num_identities)
        initialise(self)

    def feature_map(
        self, images: Tensor, inputs: Sequence[Sequence[Any]] = ((),) * 6, stem: Sequence[Any] = ()
    ) -> Tensor:
        """Images (B, 3, H, W) -> (B, C, H/16, W/16).

        Args:
            inputs: further inputs of each of the six blocks.
            stem: further inputs of the first convolution.
        """
        x = self.pool2(self.conv2(self.maxpool(self.conv1(images, *stem)), *inputs[:2]))
        x = self.pool3(self.conv3(x, *inputs[2:4]))
        result: Tensor = self.conv5(self.conv4(x, *inputs[4:]))
        return result

    def head(self) -> list[nn.Module]:
        """Return the classifier."""
        return [self.classifier]

    def last_map(self) -> nn.Module:
        """Return the last convolution."""
        return self.conv5

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return torchreid's weights by their names in this network."""
        return rename(self, weights, _TORCHREIDS_NAMES)


class OSNet(OmniScaleFrame):
    """An omni-scale network.

    Args:
        blocks: six names from `OSBLOCKS`, two per stage.
        stem_in: use instance norm instead of batch norm after the first convolution.
        width: factor for all channels except the embedding's.
        num_identities: number of outputs of the classifier.
        pooling: a name from `POOLINGS`.
    """

    def __init__(
        self,
        blocks: Sequence[str],
        stem_in: bool,
        width: float,
        num_identities: int,
        pooling: str = "average",
    ) -> None:
        unknown = sorted(set(blocks) - set(OSBLOCKS))
        if len(blocks) != 6 or unknown:
            raise ConfigError(f"blocks = {list(blocks)}: must be six names from {', '.join(OSBLOCKS)}")

        def build_block(position: int, in_channels: int, out_channels: int) -> OSBlock:
            return OSBlock(in_channels, out_channels, *OSBLOCKS[blocks[position]])

        super().__init__(build_block, stem_in, width, num_identities)
        self.blocks = tuple(blocks)
        self.pool = build_pooling(pooling)

    def head(self) -> list[nn.Module]:
        """Return the classifier and the pooling."""
        return [*super().head(), self.pool]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> embedding (B, 512); in training (embedding, logits (B, identities))."""
        embedding: Tensor = self.fc(self.pool(self.feature_map(images)))
        return (embedding, self.classifier(embedding)) if self.training else embedding
