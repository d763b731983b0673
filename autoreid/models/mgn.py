"""The multiple granularity network, MGN (arXiv 1804.01438)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from autoreid.layers.initialisation import initialise
from autoreid.layers.pooling import max_pool_stripes
from autoreid.models.network import Network
from autoreid.models.resnet import BLOCKS, set_stride

#: Into how many horizontal stripes each branch divides its map; 1 is the whole map. The global branch comes first.
BRANCHES = ((1,), (1, 2), (1, 3))


class MGN(Network):
    """ResNet-50 that splits after the first block of its third stage into three branches.

    Each branch has its own copies of the later blocks. The global branch has last stride 2; the branches of two and
    three stripes have last stride 1. Max pooling gives each branch a vector of its whole map, and the branches with
    stripes one of each stripe: eight in all, which separate 1×1 convolutions with norm and ReLU reduce from 2048 to 256
    channels.

    As published, the vectors of whole maps are classified before the reduction and have triplet losses after it, and
    the vectors of stripes are classified after it. Each of the eight has its own classifier.

    Args:
        num_identities: number of outputs of each classifier.
    """

    embeddings = len(BRANCHES)

    def __init__(self, num_identities: int) -> None:
        super().__init__()
        resnet, channels, reduced = ResNet(Bottleneck, [*BLOCKS[50]]), 2048, 256
        set_stride(resnet.layer4, 1)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.relu, self.maxpool = resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3 = resnet.layer1, resnet.layer2, resnet.layer3[:1]
        # A slice keeps the blocks' names, so that names in a branch are those of the ResNet.
        rest = nn.Sequential(OrderedDict(layer3=resnet.layer3[1:], layer4=resnet.layer4))
        self.branches = nn.ModuleList(copy.deepcopy(rest) for _ in BRANCHES)
        set_stride(self.branches[0].get_submodule("layer4"), 2)
        #: Which of the eight vectors are those of whole maps.
        self.is_whole = [
            stripes == 1 for divisions in BRANCHES for stripes in divisions for _ in range(stripes)
        ]
        self.reduce = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, reduced, 1, bias=False),
                nn.BatchNorm2d(reduced),
                nn.ReLU(inplace=True),
            )
            for _ in self.is_whole
        )
        self.classifier = nn.ModuleList(
            nn.Linear(channels if whole else reduced, num_identities) for whole in self.is_whole
        )
        initialise(self.reduce)
        initialise(self.classifier)

    def head(self) -> list[nn.Module]:
        """Return the reductions and the classifiers."""
        return [self.reduce, self.classifier]

    def last_map(self) -> nn.Module:
        """Return the last stage of the global branch."""
        return self.branches[0]

    def renamed(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a ResNet-50 by their names in this network, where each branch has a copy."""
        found: dict[str, Tensor] = {}
        for key, value in weights.items():
            splits = key.startswith(("layer3.", "layer4.")) and not key.startswith("layer3.0.")
            names = [f"branches.{number}.{key}" for number in range(len(BRANCHES))] if splits else [key]
            found |= dict.fromkeys(names, value)
        return found

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Embed images (B, 3, H, W).

        Returns:
            In evaluation mode, the embedding (B, 2048): the eight reduced vectors, branch by branch, the whole map's
            before those of the stripes. In training mode, (embedding (B, 768), logits (B, identities, 8)); this
            embedding consists of the reduced vectors of whole maps.
        """
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        x = self.layer3(self.layer2(x))
        pooled = [
            vector
            for branch, divisions in zip(self.branches, BRANCHES, strict=True)
            for vector in _pool(branch(x), divisions)
        ]
        reduced = [reduce(vector).flatten(1) for reduce, vector in zip(self.reduce, pooled, strict=True)]
        if not self.training:
            return torch.cat(reduced, dim=1)
        logits = [
            classify(before.flatten(1) if whole else after)
            for classify, before, after, whole in zip(
                self.classifier, pooled, reduced, self.is_whole, strict=True
            )
        ]
        whole_maps = [vector for vector, whole in zip(reduced, self.is_whole, strict=True) if whole]
        return torch.cat(whole_maps, dim=1), torch.stack(logits, dim=2)


def _pool(x: Tensor, divisions: Sequence[int]) -> list[Tensor]:
    """Pool a map (B, C, h, w) to the vectors of a branch, each (B, C, 1, 1)."""
    return [part for stripes in divisions for part in max_pool_stripes(x, stripes).split(1, dim=2)]
