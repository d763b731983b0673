"""Computes embeddings in the precision and memory format of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoreid.training.precision import PassPrecision


@dataclass(frozen=True)
class EmbeddingPass:
    """Computes embeddings with the precision and the memory format of the training, which change their last digits.

    Attributes:
        network: in evaluation mode, with its weights in the memory format.
        precision: precision of the forward pass.
        layout: memory format of the images.
        inputs: the network's other inputs besides the images.
    """

    network: nn.Module
    precision: PassPrecision
    layout: torch.memory_format
    inputs: Sequence[Any] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, H, W) in any memory format; returns (B, D) float32."""
        with self.precision.backends(), self.precision.autocast():
            embedding: Tensor = self.network(images.contiguous(memory_format=self.layout), *self.inputs)
            return embedding.float()
