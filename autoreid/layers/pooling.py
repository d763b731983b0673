"""Pooling: adaptive average pooling as a product with a constant matrix, and the pooling of a map to an embedding.

PyTorch's adaptive average pooling computes the same means, but its backward pass is not deterministic on GPUs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from autoreid.errors import ConfigError
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


def max_pool_stripes(x: Tensor, stripes: int) -> Tensor:
    """Compute the maxima over horizontal stripes: (B, C, H, W) -> (B, C, stripes, 1).

    The stripes are those of adaptive pooling, see `pooling_matrix`. Equal maxima share the gradient.
    """
    height = x.shape[2]
    parts = (
        x[:, :, part * height // stripes : -(-(part + 1) * height // stripes)] for part in range(stripes)
    )
    return torch.stack([part.amax((2, 3)) for part in parts], dim=2)[..., None]


class AveragePool(nn.Module):
    """`average_pool` as a module, to use instead of `torch.nn.AdaptiveAvgPool2d`."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, rows, columns)."""
        return average_pool(x, self.rows, self.columns)


class Pooling(nn.Module, ABC):
    """A pooling of a last feature map to an embedding.

    Attributes:
        label: its name in drawings.
    """

    label: ClassVar[str]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C)."""


class GlobalAveragePool(Pooling):
    """The mean over all positions of a map."""

    label = "average"

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C)."""
        return x.mean(dim=(2, 3))


class GeneralizedMeanPool(Pooling):
    """Generalised-mean pooling (GeM, arXiv 1711.02512, eq. 3): (mean of x^p)^(1/p), with one learned exponent p.

    With p = 1 it is average pooling; for large p it approaches max pooling. Values below 1e-6 count as 1e-6.
    """

    label = "GeM"
    #: Lower bound of the values, because the derivative of a power is infinite at zero for an exponent below 1.
    SMALLEST = 1e-6

    def __init__(self, exponent: float = 3.0) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([exponent]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C), in float32 for half precision."""
        with without_autocast(x.device.type):
            wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            # In logarithms: for exponents above 6, the powers of the smallest values would be 0 in float32, and the
            # gradient of a channel without larger ones NaN.
            logs = wide.clamp(min=self.SMALLEST).log().flatten(2)
            sums = (self.exponent * logs).logsumexp(2)
            pooled: Tensor = ((sums - math.log(logs.shape[2])) / self.exponent).exp()
            return pooled


#: The poolings of a last feature map (B, C, H, W) to an embedding (B, C), by their names in `model.options.pooling`.
POOLINGS: dict[str, type[Pooling]] = {"average": GlobalAveragePool, "gem": GeneralizedMeanPool}


def build_pooling(name: str) -> Pooling:
    """Build the pooling of a last feature map; raises ConfigError if there is no such pooling."""
    if name not in POOLINGS:
        raise ConfigError(f"pooling = {name!r}: must be one of {', '.join(POOLINGS)}")
    return POOLINGS[name]()
