"""The part-aware operation of Auto-ReID (arXiv 1903.09776, section 3.3).

Shape letters: B images, E edges, C channels, M body parts, D body features, H rows and W columns of a map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.layers.pointwise import rows_of
from autoreid.layers.recompute import keep_inputs
from autoreid.spaces.reid_cell.candidate import Candidate, EdgeInputs
from autoreid.spaces.reid_cell.edge_norm import ALL, EdgeNorm
from autoreid.spaces.reid_cell.part_attention import PartAttention
from autoreid.spaces.reid_cell.part_fusion import PartFusion, part_pooling


class PartOperation(Candidate, ABC):
    """A candidate that computes a vector for each body part, and adds it to each pixel of the part.

    Raises:
        ValueError: in the forward pass, if a map has fewer rows than there are parts.
    """

    def __init__(self, stride: int, parts: int, edges: int) -> None:
        super().__init__()
        self.parts, self.stride, self.edges = parts, stride, edges

    def add_fusion(self, channels: int, hidden: int, affine: bool) -> None:
        """Add the last convolution, of C channels and D features of a part, and its norm."""
        edges = self.edges
        # The two halves of one 1×1 convolution over the concatenation (C + D -> C).
        self.fuse_pixels = nn.Conv2d(channels, edges * channels, 1, stride=self.stride, bias=False)
        self.fuse_parts = nn.Linear(hidden, edges * channels, bias=False)
        self.norm = EdgeNorm(channels, edges, affine)
        for half in (self.fuse_pixels, self.fuse_parts):
            # Initialise both halves like one convolution with C + D inputs (PyTorch's default).
            bound = (channels + hidden) ** -0.5
            nn.init.uniform_(half.weight, -bound, bound)

    @abstractmethod
    def part_outputs(self, inputs: EdgeInputs) -> Tensor:
        """Return what is added to the pixels of each part, (B, E·C, M)."""

    def last(self, inputs: EdgeInputs) -> Norm:
        """Return the norm of a map (B, E·C, ⌈H/stride⌉, ⌈W/stride⌉).

        Raises:
            ValueError: H is less than the number of parts.
        """
        height, width = inputs.x.shape[2:]
        parts_BEM = self.part_outputs(inputs)
        weight = rows_of(self.fuse_pixels.weight, self.edges, inputs.edges).flatten(1)
        fused = keep_inputs(PartFusion(self.stride), inputs.rectified, weight, parts_BEM)
        size = -(-height // self.stride), -(-width // self.stride)
        return self.norm.of(fused.unflatten(2, size), inputs.scale, inputs.edges)

    def pooling(self, x: Tensor) -> Tensor:
        """Return the matrix (H·W, M) of each pixel's weight in the mean of each part, for a map (B, C, H, W).

        Raises:
            ValueError: H is less than the number of parts.
        """
        if x.shape[2] < self.parts:
            raise ValueError(
                f"a map of {x.shape[2]} rows cannot be cut into {self.parts} parts; use fewer parts"
            )
        return part_pooling(x, self.parts)

    def by_edge(self, stacked: Iterable[Tensor], edges: slice) -> list[Tensor]:
        """Unflatten values that are concatenated over the edges, and select some edges: (E, D_out, ...) each."""
        by_edge = [value.unflatten(0, (self.edges, -1)) for value in stacked]
        return by_edge if edges == ALL else [value[edges] for value in by_edge]


class PartAware(PartOperation):
    """Self-attention between horizontal body parts, whose result is added to each pixel of a part.

    1. Average each of the M horizontal parts of x (B, C, H, W) to a vector, as adaptive average pooling does.
    2. Map these vectors linearly to body vectors b (B, M, D), with D = ⌈C/3⌉; the authors' release rounds down.
    3. Apply self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, without scaling and value projection.
    4. Repeat each part's vector over the rows of the part, concatenate the result with x, and apply ReLU → 1×1 → norm.

    All parts have the same weights, so that the operation cannot tell a head from legs; `PartConv` can.

    The 1×1 convolution is linear. So its half for the parts is applied to the M vectors, and the results are added to
    the rows of their parts; the concatenated map is never computed. A row belongs to part ⌊row·M/H⌋, which is one of
    the parts that average over it. Pooling and repeating are products with constant matrices. Unlike those of adaptive
    pooling and indexing, their backward passes are deterministic on GPUs.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4, edges: int = 1) -> None:
        super().__init__(stride, parts, edges)
        hidden = -(-channels // 3)
        # The outputs of each layer are concatenated over the edges.
        self.body = nn.Linear(channels, edges * hidden)
        self.query = nn.Linear(hidden, edges * hidden)
        self.key = nn.Linear(hidden, edges * hidden)
        self.add_fusion(channels, hidden, affine)

    def part_outputs(self, inputs: EdgeInputs) -> Tensor:
        """Return what is added to the pixels of each part, (B, E·C, M)."""
        layers = (self.body, self.query, self.key)
        stacked = [value for layer in layers for value in (layer.weight, layer.bias)]
        weights = self.by_edge([*stacked, self.fuse_parts.weight], inputs.edges)
        return keep_inputs(PartAttention(self.pooling(inputs.x)), inputs.x, *weights)
