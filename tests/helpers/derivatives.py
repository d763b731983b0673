"""Compare the values and the first and second derivatives of two implementations of one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def derivatives(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the output, its gradients as in training, its differentiable gradients, and second derivatives."""
    output = function(*leaves)
    plain = torch.autograd.grad(output.sin().sum(), leaves)
    first = torch.autograd.grad(function(*leaves).cos().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)
    return [output, *plain, *first, *second]


def assert_same_derivatives(
    function: Callable[..., Tensor], expected: Callable[..., Tensor], leaves: Sequence[Tensor]
) -> None:
    """Assert that two functions of float64 leaves agree to 1e-9 in their values and derivatives."""
    for found, wanted in zip(derivatives(function, leaves), derivatives(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
