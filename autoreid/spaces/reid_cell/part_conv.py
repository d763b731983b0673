"""A part-aware operation with a convolution and a norm for each body part, as in Auto-ReID's released code.

Shape letters: B images, E edges, C channels, M body parts, D body features, H rows and W columns of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoreid.layers.batch_norm import Norm
from autoreid.layers.recompute import keep_inputs
from autoreid.spaces.reid_cell.candidate import EdgeInputs
from autoreid.spaces.reid_cell.edge_norm import EdgeNorm
from autoreid.spaces.reid_cell.part_attention import BodyAttention
from autoreid.spaces.reid_cell.part_aware import PartOperation
from autoreid.spaces.reid_cell.part_fusion import part_pooling


class PartConv(PartOperation):
    """Self-attention between horizontal body parts, each of which has weights and a norm of its own.

    1. Average each of the M horizontal parts of x (B, C, H, W) to a vector, as adaptive average pooling does.
    2. Apply ReLU → 1×1 → norm to each vector, with weights (D, C) for each part; this gives body vectors b (B, M, D),
       with D = ⌈C/3⌉. The norms use the statistics of each feature of each part over the batch.
    3. Apply self-attention between the parts: softmax(q(b)·k(b)ᵀ)·b, without scaling and value projection.
    4. Repeat each part's vector over the rows of the part, concatenate the result with x, and apply ReLU → 1×1 → norm.

    Steps 2 to 4 are those of the authors' release, with three differences. Its 1×1 convolutions of step 2 have a bias,
    which has no effect before a norm. Its last convolution halves the resolution as FactorizedReduce does, here by a
    stride. Its part p has the rows from ⌊p·H/M⌋ to ⌊(p+1)·H/M⌋ - 1; here borders are those of `PartAware`, which
    differ only if M does not divide H.
    """

    def __init__(self, channels: int, stride: int, affine: bool, parts: int = 4, edges: int = 1) -> None:
        hidden = -(-channels // 3)
        # The outputs are concatenated over the edges, and for each edge over the parts.
        body = nn.Linear(channels, edges * parts * hidden, bias=False)
        super().__init__(channels, stride, affine, parts, edges, body, hidden)
        self.body_norm = EdgeNorm(parts * hidden, edges, affine)

    def middle(self, inputs: EdgeInputs) -> Norm:
        """Return the norms of all body vectors, as one norm of (B, E·M·D).

        Raises:
            ValueError: H is less than the number of parts.
        """
        self.check_rows(inputs.x)
        x = inputs.x
        (weight,) = self.by_edge([self.body.weight], inputs.edges)
        shares = part_pooling(x, self.parts).expand(x.shape[0], -1, -1)
        means = F.relu(torch.bmm(x.flatten(2), shares))  # B, C, M
        by_part = weight.unflatten(1, (self.parts, -1)).permute(1, 3, 0, 2).flatten(2)  # M, C, E·D
        vectors = torch.bmm(means.permute(2, 0, 1), by_part).unflatten(2, (len(weight), -1))  # M, B, E, D
        return self.body_norm.of(vectors.permute(1, 2, 0, 3).flatten(1), None, inputs.edges)

    def part_outputs(self, inputs: EdgeInputs) -> Tensor:
        """Return what is added to the pixels of each part, (B, E·C, M)."""
        assert inputs.middle is not None  # noqa: S101
        weights = self.attention_weights(inputs.edges)
        by_edge = inputs.middle.unflatten(1, (len(weights[0]), self.parts, -1)).transpose(0, 1)  # E, B, M, D
        return keep_inputs(BodyAttention(self.parts), by_edge.flatten(1, 2).contiguous(), *weights)
