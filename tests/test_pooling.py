"""Pooling as a product equals adaptive pooling."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from autoreid.layers.pooling import AveragePool, average_pool, max_pool_stripes, pooling_matrix
from autoreid.models import check_input_size
from autoreid.models.pcb import PCB

sizes = st.integers(1, 40)


@given(sizes, sizes)
def test_the_matrix_pools_as_torch_does_one_dimension(parts, size):
    x = torch.randn(2, 3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    matrix = pooling_matrix(parts, size, dtype=torch.float64)
    assert matrix.shape == (parts, size)
    torch.testing.assert_close(x @ matrix.T, F.adaptive_avg_pool1d(x, parts), rtol=1e-12, atol=1e-12)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(1, 8))
def test_pooling_and_its_gradient_are_torch_s(height, width, rows, columns):
    generator = torch.Generator().manual_seed(height * 20 + width)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator, requires_grad=True)
    found, expected = average_pool(x, rows, columns), F.adaptive_avg_pool2d(x, (rows, columns))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad(y, x, direction)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8))
def test_maxima_of_stripes_and_their_gradient_are_torch_s(height, width, stripes):
    generator = torch.Generator().manual_seed(height * 20 + width)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator, requires_grad=True)
    found, expected = max_pool_stripes(x, stripes), F.adaptive_max_pool2d(x, (stripes, 1))
    assert found.equal(expected)
    direction = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad(y, x, direction)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 4), (7, 5), (24, 8)])
def test_half_precision_is_as_exact_as_torch_s(size, layout):
    x = torch.randn(4, 16, *size, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    half = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = AveragePool(3, 2)(half)
    assert found.dtype == torch.bfloat16
    exact = F.adaptive_avg_pool2d(half.double(), (3, 2))
    # Only the result is rounded.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


def test_shapes_alone():
    check_input_size(PCB(10), 64, 32)
    assert average_pool(torch.empty(2, 3, 5, 7, device="meta"), 2, 3).shape == (2, 3, 2, 3)
