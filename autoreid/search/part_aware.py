"""The part-aware operation of Auto-ReID (arXiv 1903.09776, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartAware(nn.Module):
    """Lets horizontal body parts inform each other, and each pixel know what its part learnt.

    1. The M horizontal parts of x (B, C, H, W) are averaged to vectors (adaptive pooling's borders).
    2. A linear map makes body vectors b (B, M, D) of them, D = ⌈C/3⌉ as in the authors' release.
    3. Self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, unscaled and without a value projection.
    4. Each part's result goes back to the part's rows, is concatenated with x, and ReLU → 1×1 → norm fuses them.

    The fusion's 1×1 is linear, so its half for the parts is applied to M vectors and added to the rows they belong
    to: the concatenated map is never made. A row belongs to the part ⌊row·M/H⌋, which pools over it.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4) -> None:
        super().__init__()
        hidden = -(-channels // 3)
        self.parts = parts
        self.stride = stride
        self.body = nn.Linear(channels, hidden)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        # The two halves of one 1×1 convolution over the concatenation (C + D -> C).
        self.fuse_pixels = nn.Conv2d(channels, channels, 1, stride=stride, bias=False)
        self.fuse_parts = nn.Linear(hidden, channels, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=affine)
        for half in (self.fuse_pixels, self.fuse_parts):
            # Both halves start as one layer of C + D inputs would (Kaiming, as torch's convolutions do).
            bound = (channels + hidden) ** -0.5
            nn.init.uniform_(half.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ⌈H/stride⌉, ⌈W/stride⌉).

        Raises:
            ValueError: H is less than the number of parts.
        """
        height = x.shape[2]
        if height < self.parts:
            raise ValueError(f"a map of {height} rows cannot be cut into {self.parts} parts; use fewer parts")
        # Columns first: where H is no multiple of M, an exported 2-d pooling would be a node for every pixel.
        pooled_BMC = F.adaptive_avg_pool1d(x.mean(dim=3), self.parts).transpose(1, 2)
        body_BMD = self.body(pooled_BMC)
        attention_BMM = torch.softmax(self.query(body_BMD) @ self.key(body_BMD).transpose(1, 2), dim=2)
        attended_BMD = attention_BMM @ body_BMD
        parts_BCM = self.fuse_parts(F.relu(attended_BMD)).transpose(1, 2)
        rows = torch.arange(0, height, self.stride, device=x.device) * self.parts // height
        return self.norm(self.fuse_pixels(F.relu(x)) + parts_BCM[:, :, rows, None])
