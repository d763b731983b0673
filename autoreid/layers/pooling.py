"""Average pooling to a fixed number of parts, as a product with a constant matrix.

torch's adaptive pooling gives the same averages, but its backward pass on GPUs adds in no fixed order, so that no two
runs agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoreid.layers.autocast import without_autocast


def pooling_matrix(
    parts: int, size: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The matrix (parts, size) that averages `size` values to parts, with the borders of adaptive pooling.

    Part p is the mean of the values from ⌊p·size/parts⌋ to ⌈(p+1)·size/parts⌉ - 1; neighbours share a value where
    `parts` does not divide `size`. It is made on the device, from no data that would have to be copied there.
    """
    part, value = torch.arange(parts, device=device)[:, None], torch.arange(size, device=device)
    first, last = part * size // parts, ((part + 1) * size - 1) // parts
    inside = (first <= value) & (value <= last)
    return inside.to(dtype) / (last - first + 1)


def average_pool(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, C, H, W) -> (B, C, rows, columns): what `torch.nn.functional.adaptive_avg_pool2d` gives, up to rounding."""
    # Half precision has no exact thirds, and sums of many values need more.
    with without_autocast(x.device.type):
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return _pool(_pool(wide, columns).transpose(2, 3), rows).transpose(2, 3).to(x.dtype)


def _pool(x: Tensor, parts: int) -> Tensor:
    """Pools the last dimension."""
    if parts == 1:
        return x.mean(-1, keepdim=True)
    return x @ pooling_matrix(parts, x.shape[-1], x.device, x.dtype).T


class AveragePool(nn.Module):
    """`average_pool` as a layer, in the place of `torch.nn.AdaptiveAvgPool2d`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, rows, columns)."""
        return average_pool(x, self.rows, self.columns)
