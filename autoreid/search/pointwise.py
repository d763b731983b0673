"""1×1 convolutions as matrix products: on CPUs several times faster than convolutions of few channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pointwise(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """(B, C_in, H, W) and (C_out, C_in, 1, 1) -> (B, C_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
    if x.device.type != "cpu" or stride > 1 or not torch.is_grad_enabled():
        return F.conv2d(x, weight, stride=stride)
    # bmm, for matmul would fold the batch into the pixels and copy them.
    return torch.bmm(weight.flatten(1).expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])


class Pointwise(nn.Conv2d):
    """A 1×1 convolution without bias and stride."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        return pointwise(x, self.weight)
