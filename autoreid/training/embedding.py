"""Embedding images in the precision and memory layout of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoreid.training.precision import PassPrecision


@dataclass(frozen=True)
class EmbeddingPass:
    """Computes the embeddings of a network as its training computes them: both settings change the last digits.

    Attributes:
        network: in evaluation mode, with its weights in the memory layout.
        precision: of the forward pass.
        layout: memory layout of the images.
        inputs: what the network takes beside the images.
    """

    network: nn.Module
    precision: PassPrecision
    layout: torch.memory_format
    inputs: Sequence[Any] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in any layout -> embeddings (B, D) float32."""
        with self.precision.backends(), self.precision.autocast():
            embedding: Tensor = self.network(images.contiguous(memory_format=self.layout), *self.inputs)
            return embedding.float()
