"""The part-aware operation of Auto-ReID (arXiv 1903.09776, section 3.3).

Shape letters: B images, E edges, C channels, M body parts, D body features, H and W the map's rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.layers.pointwise import rows_of
from autoreid.layers.pooling import pooling_matrix
from autoreid.layers.recompute import Operation, keep_inputs
from autoreid.spaces.reid_cell.candidate import Candidate, EdgeInputs
from autoreid.spaces.reid_cell.edge_norm import ALL, EdgeNorm
from autoreid.spaces.reid_cell.part_attention import PartAttention


class PartAware(Candidate):
    """Lets horizontal body parts inform each other, and each pixel know what its part learnt.

    1. The M horizontal parts of x (B, C, H, W) are averaged to vectors (adaptive pooling's borders).
    2. A linear map makes body vectors b (B, M, D) of them, D = ⌈C/3⌉ as in the authors' release.
    3. Self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, unscaled and without a value projection.
    4. Each part's result goes back to the part's rows, is concatenated with x, and ReLU → 1×1 → norm fuses them.

    The fusion's 1×1 is linear, so its half for the parts is applied to M vectors and added to the rows they belong
    to: the concatenated map is never made. A row belongs to the part ⌊row·M/H⌋, which pools over it. Pooling and
    spreading are products with constant matrices: unlike adaptive pooling's and an index's, their backward passes
    are deterministic on GPUs.
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

    def last(self, inputs: EdgeInputs) -> Norm:
        """(B, C, H, W) -> (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).

        Raises:
            ValueError: H is less than the number of parts.
        """
        x, edges = inputs.x, inputs.edges
        height, width = x.shape[2:]
        if height < self.parts:
            raise ValueError(f"a map of {height} rows cannot be cut into {self.parts} parts; use fewer parts")
        attention = PartAttention(_pooling(x, self.parts))
        parts_BEM = keep_inputs(attention, x, *self._attention_weights(edges))
        weight = rows_of(self.fuse_pixels.weight, self.edges, edges).flatten(1)
        fused = keep_inputs(_Fusion(self.stride), inputs.rectified, weight, parts_BEM)
        size = -(-height // self.stride), -(-width // self.stride)
        return self.norm.of(fused.unflatten(2, size), inputs.scale, edges)

    def _attention_weights(self, edges: slice) -> list[Tensor]:
        """Weights and biases of body, query and key, and the fusion's weights, edge by edge: (E, D_out, ...)."""
        layers = (self.body, self.query, self.key)
        stacked = [value for layer in layers for value in (layer.weight, layer.bias)]
        by_edge = [value.unflatten(0, (self.edges, -1)) for value in (*stacked, self.fuse_parts.weight)]
        return by_edge if edges == ALL else [value[edges] for value in by_edge]


class _Fusion(Operation):
    """The 1×1 convolution over pixels and what their parts learnt, as products of an image.

    Inputs are x (B, C, H, W), the weights of its half (E·C, C), and the other half's of what the parts learnt,
    (B, E·C, M). The output is (B, E·C, H'·W').
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def compute(self, *inputs: Tensor) -> Tensor:
        """The output."""
        x, weight, parts = inputs
        rows = torch.bmm(parts, self._ones(x, parts))
        # In place: the first product keeps its inputs only.
        return rows.baddbmm_(weight.to(rows.dtype).expand(x.shape[0], -1, -1), self._pixels(x).to(rows.dtype))

    def gradients(
        self,
        gradient: Tensor,
        kept: tuple[Tensor, ...],  # noqa: ARG002
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """In x, weights and parts, as far as they are wanted."""
        x, weight, parts = inputs
        of_x = of_weight = of_parts = None
        if weight.requires_grad:
            of_weight = torch.bmm(gradient, self._pixels(x).transpose(1, 2)).sum(0).to(weight.dtype)
        if parts.requires_grad:
            of_parts = torch.bmm(gradient, self._ones(x, parts).transpose(1, 2)).to(parts.dtype)
        if x.requires_grad:
            of_x = self._spread(torch.bmm(weight.t().expand(x.shape[0], -1, -1), gradient).to(x.dtype), x)
        return of_x, of_weight, of_parts

    def _pixels(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H'·W')."""
        return x[:, :, :: self.stride, :: self.stride].flatten(2) if self.stride > 1 else x.flatten(2)

    def _ones(self, x: Tensor, parts: Tensor) -> Tensor:
        """(B, M, H'·W'): a one for each pixel at its part, for every image."""
        return _membership(x, parts.shape[2], self.stride).expand(x.shape[0], -1, -1)

    def _spread(self, pixels: Tensor, x: Tensor) -> Tensor:
        """(B, C, H'·W') back to x's size, with zeros between."""
        if self.stride == 1:
            return pixels.view_as(x)
        spread = torch.zeros_like(x)
        strided = spread[:, :, :: self.stride, :: self.stride]
        strided.copy_(pixels.view_as(strided))
        return spread


def _pooling(x: Tensor, parts: int) -> Tensor:
    """(H·W, M): each pixel's share in the mean of each part, with the borders of adaptive average pooling."""
    return _constant(_make_pooling, x, *x.shape[2:], parts)


def _membership(x: Tensor, parts: int, stride: int) -> Tensor:
    """(M, H'·W'): a one for each pixel at its part."""
    return _constant(_make_membership, x, *x.shape[2:], parts, stride)


def _make_pooling(device: torch.device, dtype: torch.dtype, height: int, width: int, parts: int) -> Tensor:
    of_rows = pooling_matrix(parts, height, device, dtype).t() / width
    return of_rows[:, None].expand(-1, width, -1).flatten(0, 1)


def _make_membership(
    device: torch.device, dtype: torch.dtype, height: int, width: int, parts: int, stride: int
) -> Tensor:
    part_of_row = torch.arange(0, height, stride, device=device) * parts // height
    ones = (part_of_row == torch.arange(parts, device=device)[:, None]).to(dtype)
    return ones[:, :, None].expand(-1, -1, -(-width // stride)).flatten(1)


def _constant(make: Callable[..., Tensor], x: Tensor, *sizes: int) -> Tensor:
    """A constant on the device of x, made once for each size; anew where a compiler or exporter traces."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return make(x.device, x.dtype, *sizes)
    return _kept_constant(make, x.device, x.dtype, *sizes)


@lru_cache(maxsize=256)
def _kept_constant(
    make: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, *sizes: int
) -> Tensor:
    with torch.inference_mode(False):  # what inference makes cannot be used in training
        return make(device, dtype, *sizes)
