"""A part-aware operation with a convolution and a norm for each body part, as in Auto-ReID's released code.

Shape letters: B images, E edges, C channels, M body parts, D body features, H rows and W columns of a map; N = B·M.
"""

from __future__ import annotations

from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.layers.recompute import keep_inputs
from autoreid.spaces.reid_cell.body_vectors import BodyAttention, BodyVectors
from autoreid.spaces.reid_cell.candidate import EdgeInputs
from autoreid.spaces.reid_cell.edge_norm import EdgeNorm
from autoreid.spaces.reid_cell.part_aware import PartOperation


class PartConv(PartOperation):
    """Self-attention between horizontal body parts, each of which has weights and a norm of its own.

    1. Average each of the M horizontal parts of x (B, C, H, W) to a vector, as adaptive average pooling does.
    2. Apply ReLU → 1×1 → norm to each vector, with weights (D, C) for each part; this gives body vectors b (B, M, D),
       with D = ⌈C/3⌉. The norms use the statistics of each feature of each part over the batch.
    3. Apply self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, without scaling and value projection.
    4. Repeat each part's vector over the rows of the part, concatenate the result with x, and apply ReLU → 1×1 → norm.

    These are the steps of the authors' release, with five differences. It rounds D down. Its 1×1 convolutions of step 2
    have a bias, which has no effect before a norm. Its norms of step 2 have a scale and a shift in a search too. Its
    last convolution halves the resolution as FactorizedReduce does, here by a stride. Its part p has the rows from
    ⌊p·H/M⌋ to ⌊(p+1)·H/M⌋ - 1; the borders here are those of `PartAware`, which differ only if M does not divide H.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4, edges: int = 1) -> None:
        super().__init__(stride, parts, edges)
        hidden = -(-channels // 3)
        # The outputs of each layer are concatenated over the edges; for an edge, over the parts or over query and key.
        self.body = nn.Linear(channels, edges * parts * hidden, bias=False)
        self.body_norm = EdgeNorm(parts * hidden, edges, affine)
        self.query_key = nn.Linear(hidden, edges * 2 * hidden)
        self.add_fusion(channels, hidden, affine)

    def middle(self, inputs: EdgeInputs) -> Norm:
        """Return the norms of all body vectors as the norm of one map, (1, E·M·D, B).

        Raises:
            ValueError: H is less than the number of parts.
        """
        (weight,) = self.by_edge([self.body.weight], inputs.edges)
        by_part = weight.unflatten(1, (self.parts, -1)).flatten(0, 1)  # E·M, D, C
        vectors = keep_inputs(BodyVectors(self.pooling(inputs.x)), inputs.x, by_part)
        return self.body_norm.of(vectors.flatten(0, 1).unsqueeze(0), None, inputs.edges)

    def part_outputs(self, inputs: EdgeInputs) -> Tensor:
        """Return what is added to the pixels of each part, (B, E·C, M)."""
        assert inputs.middle is not None  # noqa: S101
        layers = (self.query_key.weight, self.query_key.bias, self.fuse_parts.weight)
        weights = self.by_edge(layers, inputs.edges)
        by_edge = inputs.middle.squeeze(0).unflatten(0, (len(weights[0]), self.parts, -1))  # E, M, D, B
        body = by_edge.permute(0, 3, 1, 2).flatten(1, 2)  # E, N, D
        return keep_inputs(BodyAttention(self.parts), body, *weights)
