"""Batch normalisation on CPUs is torch's: values, running statistics, first and second derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.distributed.batch_norm import normalise

MOMENTUM, EPS = 0.1, 1e-5


def run(function, x, weight, bias, statistics):
    mean, variance = statistics or (None, None)
    return function(x, mean, variance, weight, bias, True, MOMENTUM, EPS)


def ours(*arguments):
    return normalise(*arguments, shared=False)


def drawn(shape, dtype=torch.float64, seed=0):
    """Maps whose channels lie far from zero and differ in spread, a weight and a bias, statistics twice."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    channels = torch.arange(shape[1], dtype=torch.float64).view(1, -1, *[1] * (len(shape) - 2))
    x = (x * 4.0**channels + 10 * channels).to(dtype).requires_grad_()
    weight, bias = (torch.randn(shape[1], generator=generator).to(dtype).requires_grad_() for _ in range(2))
    statistics = [(torch.ones(shape[1], dtype=dtype), torch.ones(shape[1], dtype=dtype)) for _ in range(2)]
    return x, weight, bias, statistics


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(4, 3, 5, 7), (2, 1, 1, 1), (1, 4, 2, 1), (3, 2, 6), (2, 2, 2, 2, 3), (5, 3)]),
    scaled=st.booleans(),
    shifted=st.booleans(),
    running=st.booleans(),
    channels_last=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_it_is_torchs(shape, scaled, shifted, running, channels_last, dtype):
    x, weight, bias, statistics = drawn(shape, dtype)
    if channels_last and len(shape) == 4:
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = weight if scaled else None, bias if shifted else None
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    found = []
    for function, own in zip((ours, F.batch_norm), statistics, strict=True):
        output = run(function, x, weight, bias, own if running else None)
        found.append([output, *torch.autograd.grad((output * output.detach().cos()).sum(), leaves), *own])
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, **close)


@pytest.mark.parametrize("scaled", [False, True])
def test_derivatives_of_both_orders(scaled):
    x, weight, bias, _ = drawn((3, 2, 2, 3))
    inputs = (x, weight, bias) if scaled else (x,)

    def function(x, weight=None, bias=None):
        return run(ours, x, weight, bias, None)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_one_value_a_channel_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        run(ours, torch.ones(1, 3, 1, 1), None, None, None)
