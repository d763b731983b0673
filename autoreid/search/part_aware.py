"""The part-aware operation of Auto-ReID (arXiv 1903.09776, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.search.edge_norm import EdgeNorm
from autoreid.search.pointwise import map_vectors, pointwise, rows_of


class PartAware(nn.Module):
    """Lets horizontal body parts inform each other, and each pixel know what its part learnt.

    1. The M horizontal parts of x (B, C, H, W) are averaged to vectors (adaptive pooling's borders).
    2. A linear map makes body vectors b (B, M, D) of them, D = ⌈C/3⌉ as in the authors' release.
    3. Self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, unscaled and without a value projection.
    4. Each part's result goes back to the part's rows, is concatenated with x, and ReLU → 1×1 → norm fuses them.

    The fusion's 1×1 is linear, so its half for the parts is applied to M vectors and added to the rows they belong
    to: the concatenated map is never made. A row belongs to the part ⌊row·M/H⌋, which pools over it.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4, edges: int = 1) -> None:
        super().__init__()
        hidden = -(-channels // 3)
        self.parts, self.stride, self.edges = parts, stride, edges
        # Each layer's outputs stand edge after edge.
        self.body = nn.Linear(channels, edges * hidden)
        self.query = nn.Linear(hidden, edges * hidden)
        self.key = nn.Linear(hidden, edges * hidden)
        # The two halves of one 1×1 convolution over the concatenation (C + D -> C).
        self.fuse_pixels = nn.Conv2d(channels, edges * channels, 1, stride=stride, bias=False)
        self.fuse_parts = nn.Linear(hidden, edges * channels, bias=False)
        self.norm = EdgeNorm(channels, edges, affine)
        for half in (self.fuse_pixels, self.fuse_parts):
            # Both halves start as one layer of C + D inputs would (Kaiming, as torch's convolutions do).
            bound = (channels + hidden) ** -0.5
            nn.init.uniform_(half.weight, -bound, bound)

    def forward(
        self,
        x: Tensor,
        scale_E: Tensor | None = None,
        edges: slice = slice(None),
        rectified: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).

        Raises:
            ValueError: H is less than the number of parts.
        """
        height = x.shape[2]
        if height < self.parts:
            raise ValueError(f"a map of {height} rows cannot be cut into {self.parts} parts; use fewer parts")
        # Columns first: where H is no multiple of M, an exported 2-d pooling would be a node for every pixel.
        pooled_BMC = F.adaptive_avg_pool1d(x.mean(dim=3), self.parts).transpose(1, 2)
        body_BEMD = map_vectors(self.body, pooled_BMC[:, None], self.edges, edges)
        query_BEMD, key_BEMD = (
            map_vectors(layer, body_BEMD, self.edges, edges) for layer in (self.query, self.key)
        )
        attention_BEMM = torch.softmax(query_BEMD @ key_BEMD.transpose(2, 3), dim=3)
        parts_BEMC = map_vectors(self.fuse_parts, F.relu(attention_BEMM @ body_BEMD), self.edges, edges)
        rows = torch.arange(0, height, self.stride, device=x.device) * self.parts // height
        rectified = F.relu(x) if rectified is None else rectified
        pixels = pointwise(rectified, rows_of(self.fuse_pixels.weight, self.edges, edges), self.stride)
        fused = pixels + parts_BEMC.transpose(2, 3).flatten(1, 2)[:, :, rows, None]
        return self.norm(fused, scale_E, edges)
