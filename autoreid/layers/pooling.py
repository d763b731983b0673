"""Adaptive average pooling as a product with a constant matrix.

PyTorch's adaptive average pooling computes the same means, but its backward pass is not deterministic on GPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoreid.layers.autocast import without_autocast


def pooling_matrix(
    parts: int, size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the matrix (parts, size) whose product with `size` values gives the means of adaptive pooling.

    Part p is the mean of the values from ⌊p·size/parts⌋ to ⌈(p+1)·size/parts⌉ - 1, so that neighbouring parts share a
    value if `parts` does not divide `size`. The matrix is computed on the device; nothing is copied from the host.
    """
    part, value = torch.arange(parts, device=device)[:, None], torch.arange(size, device=device)
    first, last = part * size // parts, ((part + 1) * size - 1) // parts
    inside = (first <= value) & (value <= last)
    return inside.to(dtype) / (last - first + 1)


def average_pool(x: Tensor, rows: int, columns: int) -> Tensor:
    """Compute `torch.nn.functional.adaptive_avg_pool2d`: (B, C, H, W) -> (B, C, rows, columns).

    Inputs in half precision are averaged in float32; the output has the dtype of the input.
    """
    with without_autocast(x.device.type):
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return _pool(_pool(wide, columns).transpose(2, 3), rows).transpose(2, 3).to(x.dtype)


def _pool(x: Tensor, parts: int) -> Tensor:
    """Average the last dimension to `parts` values."""
    if parts == 1:
        return x.mean(-1, keepdim=True)
    return x @ pooling_matrix(parts, x.shape[-1], x.device, x.dtype).T


class AveragePool(nn.Module):
    """`average_pool` as a module, to use instead of `torch.nn.AdaptiveAvgPool2d`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, rows, columns)."""
        return average_pool(x, self.rows, self.columns)
