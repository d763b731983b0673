"""1×1 convolutions of several edges at once; on CPUs as matrix products, much faster there for few channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rows_of(stacked: Tensor, edges: int, chosen: slice) -> Tensor:
    """The rows of some edges, of weights or statistics that stand edge below edge; a view."""
    if chosen == slice(None):
        return stacked
    return stacked.unflatten(0, (edges, -1))[chosen].flatten(0, 1)


def pointwise(x: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """(B, G·C_in, H, W) and (G·C_out, C_in, 1, 1) -> (B, G·C_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
    on_cpu = x.device.type == "cpu"
    if groups == 1:
        if not on_cpu or stride > 1 or not torch.is_grad_enabled():
            return F.conv2d(x, weight, stride=stride)
        # bmm, for matmul would fold the batch into the pixels and copy them.
        return torch.bmm(weight.flatten(1).expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])
    channels, pixels = weight.shape[1], x.shape[2] * x.shape[3]
    if stride > 1 or (
        on_cpu and pixels < channels
    ):  # a product would copy more weights than there are pixels
        return F.conv2d(x, weight, stride=stride, groups=groups)
    product = weight.view(groups, -1, channels) @ x.unflatten(1, (groups, channels)).flatten(3)
    return product.flatten(1, 2).unflatten(2, x.shape[2:])


class Pointwise(nn.Conv2d):
    """A 1×1 convolution without bias and stride."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        return pointwise(x, self.weight)
