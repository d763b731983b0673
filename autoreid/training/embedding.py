"""Embedding images in the way a network was trained: its precision and its memory layout."""

from __future__ import annotations

import torch
from torch import Tensor

from autoreid.config import Precision
from autoreid.evaluation.features import Embed
from autoreid.training.precision import allowing_tf32, autocast


def embedding_in(
    embed: Embed, precision: Precision, layout: torch.memory_format, device: torch.device
) -> Embed:
    """The same embedding, computed in a precision and a memory layout; both change its last digits.

    Args:
        embed: images (B, 3, H, W) -> (B, D), by a network whose weights lie in that layout.

    Returns:
        Images (B, 3, H, W) in any layout -> (B, D) float32.
    """

    def embed_so(images: Tensor) -> Tensor:
        with allowing_tf32(precision, device), autocast(precision, device):
            return embed(images.contiguous(memory_format=layout)).float()

    return embed_so
