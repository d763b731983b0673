"""Heads that compute identity logits from an embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.errors import ConfigError
from autoreid.layers.autocast import without_autocast


class BNNeck(nn.Module):
    """Batch normalisation between the embedding and the classifier (arXiv 1903.07071, section 3.5).

    The triplet loss uses the embedding before the norm, the cross-entropy the logits after it, so that the two losses
    do not compete in one space. Neither the norm nor the classifier has a trainable bias.
    """

    def __init__(self, dimensions: int, num_identities: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dimensions)
        self.norm.bias.requires_grad_(False)
        self.classifier = nn.Linear(dimensions, num_identities, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map embeddings (B, D) to logits (B, identities)."""
        logits: Tensor = self.classifier(self.norm(embedding))
        return logits


class CosineLinear(nn.Linear):
    """A classifier whose outputs are the cosines between its input and its rows, in float32 or float64.

    Its state dict has the entries of a linear layer. A bias is not used.
    """

    def __init__(self, dimensions: int, num_identities: int, bias: bool) -> None:
        super().__init__(dimensions, num_identities, bias)
        nn.init.normal_(self.weight, std=0.01)
        if bias:
            self.bias.requires_grad_(False).zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D) to cosines (B, identities)."""
        with without_autocast(x.device.type):
            wide = x if x.dtype == torch.float64 else x.float()
            return F.linear(F.normalize(wide, dim=1), F.normalize(self.weight, dim=1))


def use_cosines(network: nn.Module) -> None:
    """Replace the classifiers of a network: all linear layers called `classifier`, or inside of one so called.

    Raises:
        ConfigError: the network has no such layer.
    """
    classifiers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "classifier" in name.split(".")
    }
    if not classifiers:
        raise ConfigError(
            f"losses.softmax: must be linear for {type(network).__name__}, which has no linear layer called classifier"
        )
    for name, module in classifiers.items():
        new = CosineLinear(module.in_features, module.out_features, module.bias is not None)
        network.set_submodule(name, new)
