"""ResNet-50 (arXiv 1512.03385) for re-identification, with the tricks of arXiv 1903.07071."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from autoreid.errors import ConfigError
from autoreid.layers.heads import BNNeck
from autoreid.layers.initialisation import initialise
from autoreid.models.network import Network


class ResNetBackbone(ResNet, Network):
    """torchvision's ResNet-50 up to its last feature map, with the same state-dict keys.

    Args:
        last_stride: stride of the last stage; 1 gives a map of 1/16 of the image's size instead of 1/32.
    """

    #: Number of channels of the last feature map.
    channels = 2048
    # Attributes of torchvision's class, for type checkers.
    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Sequential

    def __init__(self, last_stride: int) -> None:
        if last_stride not in (1, 2):
            raise ConfigError(f"last_stride = {last_stride!r}: must be 1 or 2")
        super().__init__(Bottleneck, [3, 4, 6, 3])
        del self.avgpool, self.fc
        first: Any = self.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (last_stride, last_stride)

    def feature_map(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, 2048, H/32, W/32), or H/16 and W/16 with last stride 1."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        result: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return result

    def last_map(self) -> nn.Module:
        """Return the last stage."""
        return self.layer4


class ResNet50(ResNetBackbone):
    """ResNet-50 with average pooling; the embedding has size 2048.

    With the neck, the triplet loss uses the embedding before the norm, and ranking the embedding after it
    (arXiv 1903.07071, section 3.5). Without it, a linear classifier follows the embedding, as in torchreid.
    """

    def __init__(self, num_identities: int, last_stride: int = 2, neck: bool = True) -> None:
        super().__init__(last_stride)
        self.neck = BNNeck(self.channels, num_identities) if neck else None
        if not neck:
            self.classifier = nn.Linear(self.channels, num_identities)
            initialise(self.classifier)

    def head(self) -> list[nn.Module]:
        """Return the neck, or the classifier."""
        return [self.classifier if self.neck is None else self.neck]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> embedding (B, 2048); in training (embedding, logits (B, identities))."""
        embedding = self.feature_map(images).mean(dim=(2, 3))
        if self.neck is None:
            return (embedding, self.classifier(embedding)) if self.training else embedding
        if self.training:
            return embedding, self.neck(embedding)
        ranked: Tensor = self.neck.norm(embedding)
        return ranked
