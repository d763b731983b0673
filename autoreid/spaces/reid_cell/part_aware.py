"""The part-aware operation of Auto-ReID (arXiv 1903.09776, section 3.3).

Shape letters: B images, E edges, C channels, M body parts, D body features, H rows and W columns of a map.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.layers.pointwise import rows_of
from autoreid.layers.pooling import pooling_matrix
from autoreid.layers.recompute import RecomputedFunction, keep_inputs
from autoreid.spaces.reid_cell.candidate import Candidate, EdgeInputs
from autoreid.spaces.reid_cell.edge_norm import ALL, EdgeNorm
from autoreid.spaces.reid_cell.part_attention import PartAttention


class PartAware(Candidate):
    """Self-attention between horizontal body parts, whose result is added to each pixel of a part.

    1. Average each of the M horizontal parts of x (B, C, H, W) to a vector, as adaptive average pooling does.
    2. Map these vectors linearly to body vectors b (B, M, D), with D = ⌈C/3⌉ as in the authors' release.
    3. Apply self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, without scaling and value projection.
    4. Repeat each part's vector over the rows of the part, concatenate the result with x, and apply ReLU → 1×1 → norm.

    The 1×1 convolution is linear. So its half for the parts is applied to the M vectors, and the results are added to
    the rows of their parts; the concatenated map is never computed. A row belongs to part ⌊row·M/H⌋, which is one of
    the parts that average over it. Pooling and repeating are products with constant matrices. Unlike those of adaptive
    pooling and indexing, their backward passes are deterministic on GPUs.

    Raises:
        ValueError: in the forward pass, if a map has fewer rows than there are parts.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4, edges: int = 1) -> None:
        super().__init__()
        hidden = -(-channels // 3)
        self.parts, self.stride, self.edges = parts, stride, edges
        # The outputs of each layer are concatenated over the edges.
        self.body = nn.Linear(channels, edges * hidden)
        self.query = nn.Linear(hidden, edges * hidden)
        self.key = nn.Linear(hidden, edges * hidden)
        # The two halves of one 1×1 convolution over the concatenation (C + D -> C).
        self.fuse_pixels = nn.Conv2d(channels, edges * channels, 1, stride=stride, bias=False)
        self.fuse_parts = nn.Linear(hidden, edges * channels, bias=False)
        self.norm = EdgeNorm(channels, edges, affine)
        for half in (self.fuse_pixels, self.fuse_parts):
            # Initialise both halves like one convolution with C + D inputs (PyTorch's default).
            bound = (channels + hidden) ** -0.5
            nn.init.uniform_(half.weight, -bound, bound)

    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm of a map (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).

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
        """Return weights and biases of body, query and key, and the parts' fusion weights: (E, D_out, ...) each."""
        layers = (self.body, self.query, self.key)
        stacked = [value for layer in layers for value in (layer.weight, layer.bias)]
        by_edge = [value.unflatten(0, (self.edges, -1)) for value in (*stacked, self.fuse_parts.weight)]
        return by_edge if edges == ALL else [value[edges] for value in by_edge]


class _Fusion(RecomputedFunction):
    """The 1×1 convolution of pixels and part vectors, as matrix products for each image.

    Inputs are x (B, C, H, W), the weights of its half (E·C, C), and the output of the other half for each part,
    (B, E·C, M). The output is (B, E·C, H'·W').
    """

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the output, (B, E·C, H'·W')."""
        x, weight, parts = inputs
        rows = torch.bmm(parts, self._ones(x, parts))
        # In place, because the backward pass of the first product needs only its inputs.
        return rows.baddbmm_(weight.to(rows.dtype).expand(x.shape[0], -1, -1), self._pixels(x).to(rows.dtype))

    def gradients(
        self,
        gradient: Tensor,
        kept: tuple[Tensor, ...],  # noqa: ARG002
        *inputs: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weights and parts, None for those that need none."""
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
        """Flatten the pixels that the stride selects, (B, C, H, W), to (B, C, H'·W')."""
        return x[:, :, :: self.stride, :: self.stride].flatten(2) if self.stride > 1 else x.flatten(2)

    def _ones(self, x: Tensor, parts: Tensor) -> Tensor:
        """Return `_membership` for each image, (B, M, H'·W')."""
        return _membership(x, parts.shape[2], self.stride).expand(x.shape[0], -1, -1)

    def _spread(self, pixels: Tensor, x: Tensor) -> Tensor:
        """Expand (B, C, H'·W') to the size of x, with zeros for the pixels that the stride skips."""
        if self.stride == 1:
            return pixels.view_as(x)
        spread = torch.zeros_like(x)
        strided = spread[:, :, :: self.stride, :: self.stride]
        strided.copy_(pixels.view_as(strided))
        return spread


def _pooling(x: Tensor, parts: int) -> Tensor:
    """Return the matrix (H·W, M) of each pixel's weight in the mean of each part, as in adaptive average pooling."""
    return _constant(_compute_pooling, x, *x.shape[2:], parts)


def _membership(x: Tensor, parts: int, stride: int) -> Tensor:
    """Return the matrix (M, H'·W') that is 1 where a pixel belongs to a part, and 0 elsewhere."""
    return _constant(_compute_membership, x, *x.shape[2:], parts, stride)


def _compute_pooling(device: torch.device, dtype: torch.dtype, height: int, width: int, parts: int) -> Tensor:
    of_rows = pooling_matrix(parts, height, device, dtype).t() / width
    return of_rows[:, None].expand(-1, width, -1).flatten(0, 1)


def _compute_membership(
    device: torch.device, dtype: torch.dtype, height: int, width: int, parts: int, stride: int
) -> Tensor:
    part_of_row = torch.arange(0, height, stride, device=device) * parts // height
    ones = (part_of_row == torch.arange(parts, device=device)[:, None]).to(dtype)
    return ones[:, :, None].expand(-1, -1, -(-width // stride)).flatten(1)


def _constant(compute: Callable[..., Tensor], x: Tensor, *sizes: int) -> Tensor:
    """Return a constant on the device of x, cached by size; not cached while a compiler or exporter is tracing."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return compute(x.device, x.dtype, *sizes)
    return _cached_constant(compute, x.device, x.dtype, *sizes)


@lru_cache(maxsize=256)
def _cached_constant(
    compute: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, *sizes: int
) -> Tensor:
    with torch.inference_mode(False):  # a tensor created in inference mode cannot be used in training
        return compute(device, dtype, *sizes)
