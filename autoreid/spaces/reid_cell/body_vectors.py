"""The two functions of `PartConv`, for all edges at once: before the norm of the body vectors, and after it.

The tensors are small, so the number of kernel launches determines the speed.

Shape letters: B images, E edges, C channels, M body parts, D body features; N = B·M vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.layers.recompute import RecomputedFunction


class BodyVectors(RecomputedFunction):
    """Averages each part, and applies ReLU and the part's own linear layer.

    The inputs are x (B, C, H, W) and the weights of each edge and part (E·M, D, C). The output is (E·M, D, B).

    Args:
        pooling: (H·W, M), the weight of each pixel in the mean of each part.
    """

    def __init__(self, pooling: Tensor) -> None:
        self.pooling, self.parts = pooling, pooling.shape[1]

    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the output."""
        x, weight = inputs
        return torch.bmm(weight, F.relu(self._by_edge(self._means(x), len(weight))).flatten(0, 1))

    def compute_and_keep(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output and the rectified means, (E·M, C, B)."""
        x, weight = inputs
        means = self._by_edge(self._means(x), len(weight))
        # One kernel rectifies the means and copies them to each edge.
        rectified = torch.clamp_min(
            means, 0, out=torch.empty_like(means, memory_format=torch.contiguous_format)
        )
        rectified = rectified.flatten(0, 1)
        return torch.bmm(weight, rectified), (rectified,)

    def gradients(
        self, gradient: Tensor, kept: tuple[Tensor, ...], *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and the weights; None for those that are not required."""
        x, weight = inputs
        (rectified,) = kept
        of_x = of_weight = None
        if weight.requires_grad:
            of_weight = torch.bmm(gradient, rectified.transpose(1, 2)).to(weight.dtype)
        if x.requires_grad:
            by_edge = torch.bmm(weight.to(gradient.dtype).transpose(1, 2), gradient)
            of_means = by_edge.unflatten(0, (-1, self.parts)).sum(0)  # M, C, B
            of_means = torch.ops.aten.threshold_backward(of_means, rectified[: self.parts], 0)
            shares = self.pooling.t().expand(x.shape[0], -1, -1)
            of_x = torch.bmm(of_means.permute(2, 1, 0), shares).view_as(x)
        return of_x, of_weight

    def _means(self, x: Tensor) -> Tensor:
        """Return the mean of each part, (B, C, M)."""
        return torch.bmm(x.flatten(2), self.pooling.expand(x.shape[0], -1, -1))

    def _by_edge(self, means: Tensor, count: int) -> Tensor:
        """Expand the means to (E, M, C, B), for E·M = `count`."""
        return means.permute(2, 1, 0).expand(count // self.parts, -1, -1, -1)


class _Steps(NamedTuple):
    """The intermediate results of the attention, kept for the backward pass.

    Attributes:
        query_key: (E, N, 2·D).
        weights: weights of the attention, (E·B, M, M).
        attended: (E, N, D).
    """

    query_key: Tensor
    weights: Tensor
    attended: Tensor


class BodyAttention(RecomputedFunction):
    """Lets each part attend to all parts, and projects the result with the weights of the fusion.

    The inputs are the body vectors (E, N, D); the weights (E, 2·D, D) and biases (E, 2·D) of query and key, in this
    order; and the weights of the fusion, (E, C, D). The output is (B, E·C, M).

    Args:
        parts: M.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def compute(self, *inputs: Tensor) -> Tensor:
        """Return the output."""
        return self.compute_and_keep(*inputs)[0]

    def compute_and_keep(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output and the intermediate results."""
        body, weight, bias, fuse_w = inputs
        query_key = torch.baddbmm(bias[:, None], body, weight.transpose(1, 2))
        query, key = self._by_image(query_key).chunk(2, dim=2)
        weights = torch.softmax(torch.bmm(query, key.transpose(1, 2)), dim=2).to(query_key.dtype)
        attended = F.relu(torch.bmm(weights, self._by_image(body))).view_as(body)
        fused = torch.bmm(fuse_w, attended.transpose(1, 2))  # E, C, N
        output = fused.flatten(0, 1).unflatten(1, (-1, self.parts)).transpose(0, 1)
        return output, _Steps(query_key, weights, attended)

    def gradients(
        self, gradient: Tensor, kept: tuple[Tensor, ...], *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the body vectors and of the weights and biases; None for those not required."""
        body, weight, _, fuse_w = inputs
        steps = _Steps(*kept)
        of_fused = gradient.transpose(0, 1).reshape(len(body), -1, body.shape[1])  # E, C, N
        of_attended = torch.bmm(of_fused.transpose(1, 2), fuse_w)
        of_attended = torch.ops.aten.threshold_backward(of_attended, steps.attended, 0)
        of_query_key = self._through_softmax(of_attended, body, steps)
        of_body = torch.bmm(steps.weights.transpose(1, 2), self._by_image(of_attended)).view_as(body)
        of_body = torch.baddbmm(of_body, of_query_key, weight)
        if not weight.requires_grad:
            return of_body, None, None, None
        of_weight = torch.bmm(of_query_key.transpose(1, 2), body)
        return of_body, of_weight, of_query_key.sum(1), torch.bmm(of_fused, steps.attended)

    def _through_softmax(self, of_attended: Tensor, body: Tensor, steps: _Steps) -> Tensor:
        """Return the gradients of query and key, (E, N, 2·D)."""
        query, key = self._by_image(steps.query_key).chunk(2, dim=2)
        of_weights = torch.bmm(self._by_image(of_attended), self._by_image(body).transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, steps.weights, 2, steps.weights.dtype)
        of_both = torch.empty_like(steps.query_key)
        of_query, of_key = self._by_image(of_both).chunk(2, dim=2)
        torch.bmm(of_scores, key, out=of_query)
        torch.bmm(of_scores.transpose(1, 2), query, out=of_key)
        return of_both

    def _by_image(self, vectors: Tensor) -> Tensor:
        """Group the vectors (E, N, ...) by image, (E·B, M, ...)."""
        return vectors.reshape(-1, self.parts, vectors.shape[2])
