"""Self-attention between body parts, of all edges at once; its tensors are small, so few launches are what counts.

Shape letters: B images, E edges, C channels, M body parts, D body features; N = B·M vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autoreid.search.recompute import Operation


class _Steps(NamedTuple):
    """What the steps of the attention gave: (E, N, D) each, the weights of the attention (E·B, M, M)."""

    body: Tensor
    query: Tensor
    key: Tensor
    weights: Tensor
    attended: Tensor


class PartAttention(Operation):
    """What each part learns from all parts, through the fusion's weights for it.

    Inputs are the parts' mean vectors (N, C); weights and biases of body (E, D, C) and (E, D), of query and key
    (E, D, D) and (E, D) each; and the fusion's weights (E, C, D). The output is (B, E·C, M).
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def compute(self, *inputs: Tensor) -> Tensor:
        """The output."""
        return self.compute_and_keep(*inputs)[0]

    def compute_and_keep(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output, and the steps that led to it."""
        vectors, body_w, body_b, query_w, query_b, key_w, key_b, fuse_w = inputs
        body = _linear(vectors.expand(len(body_w), -1, -1), body_w, body_b)
        query, key = _linear(body, query_w, query_b), _linear(body, key_w, key_b)
        scores = torch.bmm(self._by_image(query), self._by_image(key).transpose(1, 2))
        weights = torch.softmax(scores, dim=2).to(body.dtype)
        attended = F.relu(torch.bmm(weights, self._by_image(body))).view_as(body)
        fused = torch.bmm(fuse_w, attended.transpose(1, 2))  # E, C, N
        output = fused.flatten(0, 1).unflatten(1, (-1, self.parts)).transpose(0, 1)
        return output, _Steps(body, query, key, weights, attended)

    def gradients(
        self, gradient: Tensor, kept: tuple[Tensor, ...], *inputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """In the vectors and, if they are wanted, in the weights and biases."""
        vectors, body_w, _, query_w, _, key_w, _, fuse_w = inputs
        steps = _Steps(*kept)
        edges = len(body_w)
        of_fused = gradient.transpose(0, 1).reshape(edges, -1, len(vectors))  # E, C, N
        of_attended = torch.bmm(of_fused.transpose(1, 2), fuse_w)
        of_attended = torch.ops.aten.threshold_backward(of_attended, steps.attended, 0)
        of_query, of_key = self._through_softmax(of_attended, steps)
        of_body = torch.bmm(steps.weights.transpose(1, 2), self._by_image(of_attended)).view_as(steps.body)
        of_body = torch.baddbmm(torch.baddbmm(of_body, of_query, query_w), of_key, key_w)
        of_vectors = None
        if vectors.requires_grad:
            of_vectors = torch.bmm(of_body, body_w).sum(0)
        if not fuse_w.requires_grad:
            return of_vectors, *[None] * 7
        return (
            of_vectors,
            *_of_linear(of_body, vectors.expand(edges, -1, -1)),
            *_of_linear(of_query, steps.body),
            *_of_linear(of_key, steps.body),
            torch.bmm(of_fused, steps.attended),
        )

    def _through_softmax(self, of_attended: Tensor, steps: _Steps) -> tuple[Tensor, Tensor]:
        """The gradients in query and key, (E, N, D) each."""
        query, key, body = (self._by_image(x) for x in (steps.query, steps.key, steps.body))
        of_weights = torch.bmm(self._by_image(of_attended), body.transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, steps.weights, 2, steps.weights.dtype)
        of_query, of_key = torch.bmm(of_scores, key), torch.bmm(of_scores.transpose(1, 2), query)
        return of_query.view_as(steps.query), of_key.view_as(steps.key)

    def _by_image(self, vectors: Tensor) -> Tensor:
        """(E, N, D) -> (E·B, M, D)."""
        return vectors.view(-1, self.parts, vectors.shape[2])


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(E, N, D_in), (E, D_out, D_in) and (E, D_out) -> (E, N, D_out)."""
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def _of_linear(gradient: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in a layer's weight and bias."""
    return torch.bmm(gradient.transpose(1, 2), x), gradient.sum(1)
