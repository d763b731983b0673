"""ResNets (arXiv 1512.03385) for re-identification, with the tricks of arXiv 1903.07071 and 2001.04193."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from autoreid.errors import ConfigError
from autoreid.layers.heads import BNNeck
from autoreid.layers.initialisation import initialise
from autoreid.layers.instance_batch_norm import InstanceBatchNorm
from autoreid.layers.non_local import NonLocal
from autoreid.layers.pooling import build_pooling
from autoreid.models.network import Network

#: Numbers of blocks in the four stages, by the depth of the network.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNetBackbone(ResNet, Network):
    """torchvision's ResNet up to its last feature map, with the same state-dict keys.

    Args:
        last_stride: stride of the last stage; 1 gives a map of 1/16 of the image's size instead of 1/32.
        depth: 50 or 101.
        ibn: whether the first norm of each block of the first three stages is an instance-batch norm, as in IBN-a.
            The state-dict keys are then those of IBN-Net's authors.
    """

    #: Number of channels of the last feature map.
    channels = 2048
    # Attributes of torchvision's class, for type checkers.
    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, last_stride: int, depth: int = 50, ibn: bool = False) -> None:
        if last_stride not in (1, 2):
            raise ConfigError(f"last_stride = {last_stride!r}: must be 1 or 2")
        super().__init__(Bottleneck, [*BLOCKS[depth]])
        del self.avgpool, self.fc
        set_stride(self.layer4, last_stride)
        if ibn:
            block: Any
            for block in (*self.layer1, *self.layer2, *self.layer3):
                block.bn1 = InstanceBatchNorm(block.bn1.num_features)

    def feature_map(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, 2048, H/32, W/32), or H/16 and W/16 with last stride 1."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        result: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return result

    def last_map(self) -> nn.Module:
        """Return the last stage."""
        return self.layer4


def set_stride(stage: Any, stride: int) -> None:
    """Set the stride of a stage of a ResNet."""
    first = stage[0]
    first.conv2.stride = first.downsample[0].stride = (stride, stride)


class ReidResNet(ResNetBackbone):
    """A ResNet with global pooling; the embedding has size 2048.

    With the neck, the triplet loss uses the embedding before the norm, and ranking the embedding after it
    (arXiv 1903.07071, section 3.5). Without it, a linear classifier follows the embedding, as in torchreid.

    Args:
        depth: 50 or 101.
        ibn: as in `ResNetBackbone`.
        num_identities: number of outputs of the classifier.
        last_stride: as in `ResNetBackbone`.
        neck: whether to have a BNNeck.
        pooling: a name from `POOLINGS`.
        non_local: how many of the last blocks of the second and of the third stage are each followed by a non-local
            block; (2, 3) in AGW (arXiv 2001.04193). They belong to the head, because pretrained weights lack them.
    """

    def __init__(
        self,
        depth: int,
        ibn: bool,
        num_identities: int,
        last_stride: int = 2,
        neck: bool = True,
        pooling: str = "average",
        non_local: Sequence[int] = (0, 0),
    ) -> None:
        super().__init__(last_stride, depth, ibn)
        self.pool = build_pooling(pooling)
        self.non_local = self._build_non_local(non_local)
        self.neck = BNNeck(self.channels, num_identities) if neck else None
        if not neck:
            self.classifier = nn.Linear(self.channels, num_identities)
            initialise(self.classifier)

    def _build_non_local(self, counts: Sequence[int]) -> nn.ModuleDict:
        """Build the non-local blocks, by the names of the blocks that they follow, such as layer2_3."""
        blocks = (len(self.layer2), len(self.layer3))
        fits = isinstance(counts, list | tuple) and len(counts) == len(blocks)
        if not fits or any(not 0 <= count <= most for count, most in zip(counts, blocks, strict=True)):
            raise ConfigError(
                f"non_local = {counts!r}: must be two numbers of blocks, at most {blocks[0]} and {blocks[1]}, such as "
                f"[2, 3]"
            )
        stages = zip(("layer2", "layer3"), (512, 1024), blocks, counts, strict=True)
        return nn.ModuleDict(
            {
                f"{stage}_{block}": NonLocal(channels)
                for stage, channels, length, count in stages
                for block in range(length - count, length)
            }
        )

    def _stage(self, name: str, x: Tensor) -> Tensor:
        """Compute a stage, with its non-local blocks."""
        for number, block in enumerate(self.get_submodule(name).children()):
            x = block(x)
            if f"{name}_{number}" in self.non_local:
                x = self.non_local[f"{name}_{number}"](x)
        return x

    def feature_map(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, 2048, H/32, W/32), or H/16 and W/16 with last stride 1."""
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        result: Tensor = self.layer4(self._stage("layer3", self._stage("layer2", x)))
        return result

    def head(self) -> list[nn.Module]:
        """Return everything that published weights lack: the neck or the classifier, the pooling, non-local blocks."""
        return [self.classifier if self.neck is None else self.neck, self.pool, self.non_local]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> embedding (B, 2048); in training (embedding, logits (B, identities))."""
        embedding = self.pool(self.feature_map(images))
        if self.neck is None:
            return (embedding, self.classifier(embedding)) if self.training else embedding
        if self.training:
            return embedding, self.neck(embedding)
        ranked: Tensor = self.neck.norm(embedding)
        return ranked
