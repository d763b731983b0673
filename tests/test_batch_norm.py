"""Batch normalisation on one process equals PyTorch's: values, running statistics, first and second derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.layers import batch_norm_passes as passes
from autoreid.layers.batch_norm import normalise
from autoreid.layers.batch_norm_functions import normalise_over_ranks

MOMENTUM, EPS = 0.1, 1e-5


def run(function, x, weight, bias, statistics):
    mean, variance = statistics or (None, None)
    return function(x, mean, variance, weight, bias, True, MOMENTUM, EPS)


def ours(*arguments):
    return normalise(*arguments, shared=False)


def drawn(shape, dtype=torch.float64, seed=0):
    """A map whose channels differ in mean and variance, a weight, a bias, and two copies of running statistics."""
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
    for value, wanted in zip(*found, strict=True):
        torch.testing.assert_close(value, wanted, **close)


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


LAYOUTS = [
    ((4, 3, 5, 7), False),
    ((4, 3, 5, 7), True),
    ((4, 6), False),
    ((4, 3, 1, 1), False),
    ((4, 2, 6), False),
]


def halves(shape, channels_last, dtype=torch.float64, device="cpu"):
    """A batch of two ranks, a gradient of its output, a weight and a bias."""
    x, weight, bias, _ = drawn((2 * shape[0], *shape[1:]), dtype)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    tensors = [tensor.detach().to(device) for tensor in (x, dy, weight, bias)]
    if channels_last:
        tensors[:2] = [tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors[:2]]
    return tensors


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("shape", "channels_last"), LAYOUTS)
def test_the_passes_of_two_ranks_make_up_torchs_function(shape, channels_last, scaled):
    x, dy, weight, bias = halves(shape, channels_last)
    scale, shift = (weight, bias) if scaled else (None, None)
    leaf = x.clone().requires_grad_()
    expected = F.batch_norm(leaf, None, None, scale, shift, True, MOMENTUM, EPS)
    (expected_dx,) = torch.autograd.grad(expected, leaf, dy)
    others = [dim for dim in range(x.dim()) if dim != 1]
    variance, mean = torch.var_mean(x, others, correction=0)
    inverse = (variance + EPS).rsqrt()
    ranks = list(zip(x.chunk(2), dy.chunk(2), strict=True))
    close = {"rtol": 1e-9, "atol": 1e-9}
    for part, _ in ranks:
        own_variance, own_mean = torch.var_mean(part, others, correction=0)
        torch.testing.assert_close(passes.mean_and_variance(part), (own_mean, own_variance), **close)
    sums, products = (
        sum(values)
        for values in zip(*(passes.gradient_sums(g, part, mean, inverse) for part, g in ranks), strict=True)
    )
    count = torch.tensor([x.numel() // x.shape[1]], dtype=torch.int32)
    outputs = [passes.normalised(part, mean, inverse, scale, shift) for part, _ in ranks]
    dxs = [passes.input_gradient(g, part, mean, inverse, scale, sums, products, count) for part, g in ranks]
    torch.testing.assert_close(torch.cat(outputs), expected.detach(), **close)
    torch.testing.assert_close(torch.cat(dxs), expected_dx, **close)


def test_several_maps_over_ranks_have_derivatives_of_both_orders():
    x, weight, bias, _ = drawn((3, 2, 2, 3))
    vectors, scale, *_ = drawn((4, 3), seed=1)

    def function(x, weight, bias, vectors, scale):
        outputs, *_ = normalise_over_ranks(
            (x, vectors, x), (weight, scale.exp(), None), (bias, None, None), EPS
        )
        return tuple(outputs)

    inputs = x, weight, bias, vectors, scale
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_has_float32_statistics_and_keeps_the_map_as_it_is(dtype, channels_last):
    x, dy, weight, bias = halves((4, 3, 5, 7), channels_last, dtype)
    leaves = [leaf.requires_grad_() for leaf in (x, weight.float(), bias.float())]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (y,), (mean,), (variance,) = normalise_over_ranks([x], [leaves[1]], [leaves[2]], EPS)
    expected = F.batch_norm(wide[0], None, None, wide[1], wide[2], True, MOMENTUM, EPS)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    (kept_map,) = (tensor for tensor in kept if tensor.dim() > 1)
    assert kept_map.data_ptr() == x.data_ptr()
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean.double(), wide[0].detach().mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)
    gradients = torch.autograd.grad(y, leaves, dy)
    assert [gradient.dtype for gradient in gradients] == [dtype, torch.float32, torch.float32]
    for value, wanted in zip(gradients, torch.autograd.grad(expected, wide, dy.double()), strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("shape", "channels_last"), LAYOUTS)
def test_cudas_passes_are_the_cpus(shape, channels_last, scaled, dtype):
    x, dy, weight, bias = halves(shape, channels_last, dtype)
    parameters = [passes.wide(values) if scaled else None for values in (weight, bias)]
    mean, variance = passes.mean_and_variance(x)
    inverse = (variance + EPS).rsqrt()
    count = torch.tensor([3 * x.numel() // x.shape[1]], dtype=torch.int32)
    sums, products = (values / 2 for values in passes.gradient_sums(dy, x, mean, inverse))
    calls = [
        (passes.mean_and_variance, (x,)),
        (passes.normalised, (x, mean, inverse, *parameters)),
        (passes.gradient_sums, (dy, x, mean, inverse)),
        (passes.input_gradient, (dy, x, mean, inverse, parameters[0], sums, products, count)),
    ]
    close = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 2e-2)
    for function, arguments in calls:
        on_gpu = [None if value is None else value.cuda() for value in arguments]
        found, expected = function(*on_gpu), function(*arguments)
        torch.testing.assert_close(found, _on_gpu(expected), rtol=close, atol=close)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("other_layout", [False, True])
@pytest.mark.parametrize(("shape", "channels_last"), LAYOUTS)
def test_a_gpu_differentiates_as_a_cpu_whatever_the_gradients_layout(shape, channels_last, other_layout):
    found = []
    for device in ("cpu", "cuda"):
        x, dy, weight, bias = halves(shape, channels_last, device=device)
        if other_layout and x.dim() == 4:
            formats = torch.channels_last, torch.contiguous_format
            dy = dy.contiguous(memory_format=formats[channels_last])
        leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
        outputs, *_ = normalise_over_ranks([x], [weight], [bias], EPS)
        found.append(
            [outputs[0].detach().cpu(), *(g.cpu() for g in torch.autograd.grad(outputs[0], leaves, dy))]
        )
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-10, atol=1e-10, check_stride=False)


def _on_gpu(values):
    return tuple(value.cuda() for value in values) if isinstance(values, tuple) else values.cuda()
