"""Self-attention between body parts, for all edges at once.

The tensors are small, so the number of kernel launches determines the speed.

Shape letters: B images, E edges, C channels, M body parts, D body features; N = B·M vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.layers.recompute import RecomputedFunction


class _Steps(NamedTuple):
    """The intermediate results, kept for the backward pass.

    Attributes:
        vectors: means of the parts, (N, C).
        body, query, key, attended: (E, N, D).
        weights: weights of the attention, (E·B, M, M).
    """

    vectors: Tensor
    body: Tensor
    query: Tensor
    key: Tensor
    weights: Tensor
    attended: Tensor


class PartAttention(RecomputedFunction):
    """Lets each part attend to all parts, and projects the result with the weights of the fusion.

    The inputs are x (B, C, H, W); the weights and biases of body, (E, D, C) and (E, D), of query and of key, (E, D, D)
    and (E, D) each; and the weights of the fusion, (E, C, D). The output is (B, E·C, M).

    Args:
        pooling: (H·W, M), the weight of each pixel in the mean of each part.
    """

    def __init__(self, pooling: Tensor) -> None:
        self.pooling, self.parts = pooling, pooling.shape[1]

    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the output."""
        return self.compute_and_keep(*inputs)[0]

    def compute_and_keep(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output and the intermediate results."""
        x, body_w, body_b, query_w, query_b, key_w, key_b, fuse_w = inputs
        pixels = x.flatten(2).transpose(1, 2)
        vectors = torch.bmm(self.pooling.t().expand(x.shape[0], -1, -1), pixels).flatten(0, 1)
        body = _linear(vectors.expand(len(body_w), -1, -1), body_w, body_b)
        query, key = _linear(body, query_w, query_b), _linear(body, key_w, key_b)
        scores = torch.bmm(self._by_image(query), self._by_image(key).transpose(1, 2))
        weights = torch.softmax(scores, dim=2).to(body.dtype)
        attended = F.relu(torch.bmm(weights, self._by_image(body))).view_as(body)
        fused = torch.bmm(fuse_w, attended.transpose(1, 2))  # E, C, N
        output = fused.flatten(0, 1).unflatten(1, (-1, self.parts)).transpose(0, 1)
        return output, _Steps(vectors, body, query, key, weights, attended)

    def gradients(
        self, gradient: Tensor, kept: tuple[Tensor, ...], *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and of the weights and biases; None for those that are not required."""
        x, body_w, _, query_w, _, key_w, _, fuse_w = inputs
        steps = _Steps(*kept)
        edges = len(body_w)
        of_fused = gradient.transpose(0, 1).reshape(edges, -1, steps.vectors.shape[0])  # E, C, N
        of_attended = torch.bmm(of_fused.transpose(1, 2), fuse_w)
        of_attended = torch.ops.aten.threshold_backward(of_attended, steps.attended, 0)
        of_both = self._through_softmax(of_attended, steps)
        of_query, of_key = of_both.unbind()
        of_body = torch.bmm(steps.weights.transpose(1, 2), self._by_image(of_attended)).view_as(steps.body)
        of_body = torch.baddbmm(torch.baddbmm(of_body, of_query, query_w), of_key, key_w)
        of_x = None
        if x.requires_grad:
            of_vectors = torch.bmm(of_body, body_w).sum(0).unflatten(0, (x.shape[0], self.parts))
            of_x = torch.bmm(of_vectors.transpose(1, 2), self.pooling.t().expand(x.shape[0], -1, -1)).view_as(
                x
            )
        if not fuse_w.requires_grad:
            return of_x, *[None] * 7
        of_biases = of_both.sum(2)
        return (
            of_x,
            torch.bmm(of_body.transpose(1, 2), steps.vectors.expand(edges, -1, -1)),
            of_body.sum(1),
            torch.bmm(of_query.transpose(1, 2), steps.body),
            of_biases[0],
            torch.bmm(of_key.transpose(1, 2), steps.body),
            of_biases[1],
            torch.bmm(of_fused, steps.attended),
        )

    def _through_softmax(self, of_attended: Tensor, steps: _Steps) -> Tensor:
        """Return the gradients of query and key, (2, E, N, D)."""
        query, key, body = (self._by_image(x) for x in (steps.query, steps.key, steps.body))
        of_weights = torch.bmm(self._by_image(of_attended), body.transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, steps.weights, 2, steps.weights.dtype)
        of_both = steps.query.new_empty(2, *steps.query.shape)
        torch.bmm(of_scores, key, out=self._by_image(of_both[0]))
        torch.bmm(of_scores.transpose(1, 2), query, out=self._by_image(of_both[1]))
        return of_both

    def _by_image(self, vectors: Tensor) -> Tensor:
        """Group the vectors (E, N, D) by image, (E·B, M, D)."""
        return vectors.view(-1, self.parts, vectors.shape[2])


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply E linear layers: x (E, N, D_in), weight (E, D_out, D_in), bias (E, D_out) -> (E, N, D_out)."""
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
