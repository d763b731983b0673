"""1×1 convolutions, also of several edges at once; as matrix products where these are faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers import cpu


def rows_of(stacked: Tensor, edges: int, chosen: slice) -> Tensor:
    """Return a view of some edges' rows of weights or statistics that are concatenated over `edges` edges."""
    if chosen == slice(None):
        return stacked
    return stacked.unflatten(0, (edges, -1))[chosen].flatten(0, 1)


def pointwise(x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    """Compute a 1×1 convolution: (B, G·C_in, H, W) and (G·C_out, C_in, 1, 1) -> (B, G·C_out, H, W)."""
    product = cpu.multiplies_pointwise(x, weight, groups) if cpu.uses_cpu_form(x) else groups > 1
    if not product:
        return F.conv2d(x, weight, groups=groups)
    if groups == 1:
        # bmm, because matmul would fold the batch into the pixels and copy them.
        return torch.bmm(weight.flatten(1).expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])
    channels = weight.shape[1]
    by_group = weight.view(groups, -1, channels) @ x.unflatten(1, (groups, channels)).flatten(3)
    return by_group.flatten(1, 2).unflatten(2, x.shape[2:])


class Pointwise(nn.Conv2d):
    """A 1×1 convolution with stride 1 and no bias, in one or several groups."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        return pointwise(x, self.weight, self.groups)
