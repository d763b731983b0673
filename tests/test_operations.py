from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoreid.config import CELL_OPERATIONS
from autoreid.layers.separable import dense, separable
from autoreid.spaces.reid_cell.operations import FactorizedReduce, build_operation

SIZES = [(8, 6), (9, 7), (5, 4)]


def build(name, stride=1, channels=12, affine=False):
    torch.manual_seed(0)
    return build_operation(name, channels, stride, affine, parts=4).double()


def images(height=9, width=7, channels=12):
    torch.manual_seed(1)
    return torch.randn(3, channels, height, width, dtype=torch.float64)


def normalised(x):
    """Batch normalisation without scale, from its definition."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", CELL_OPERATIONS[1:])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_output_shapes_and_gradients(name, stride, height, width):
    x = images(height, width).requires_grad_()
    operation = build(name, stride)
    output = operation(x)
    assert output.shape == (3, 12, -(-height // stride), -(-width // stride))
    assert output.std() > 0.1
    weights = list(operation.parameters())
    gradients = torch.autograd.grad((output * torch.randn_like(output)).sum(), [x, *weights])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[:1])
    for (parameter, _), gradient in zip(operation.named_parameters(), gradients[1:], strict=True):
        # Adding one vector to all keys does not change the softmax over them.
        assert gradient.abs().sum() > 0 or parameter == "key.bias", parameter


@pytest.mark.parametrize("name", CELL_OPERATIONS[1:])
@pytest.mark.parametrize("stride", [1, 2])
def test_no_norm_of_any_candidate_learns_a_scale_in_a_search(name, stride):
    norms = [module for module in build(name, stride).modules() if isinstance(module, nn.BatchNorm2d)]
    assert bool(norms) == (name != "skip_connect" or stride == 2)
    assert not [parameter for norm in norms for parameter in norm.parameters()]
    learnt = [
        module
        for module in build(name, stride, affine=True).modules()
        if isinstance(module, nn.BatchNorm2d) and list(module.parameters())
    ]
    assert len(learnt) == len(norms)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("name", "reduce"), [("avg_pool_3x3", torch.mean), ("max_pool_3x3", torch.amax)])
def test_pools_do_not_count_their_padding(name, reduce, stride):
    x = images()
    H, W = x.shape[2:]
    expected = torch.stack(
        [
            torch.stack(
                [
                    reduce(
                        x[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].flatten(2), dim=2
                    )
                    for column in range(0, W, stride)
                ],
                dim=2,
            )
            for row in range(0, H, stride)
        ],
        dim=2,
    )
    torch.testing.assert_close(build(name, stride)(x), normalised(expected))


def test_skip_connect_at_stride_one_is_the_identity():
    x = images()
    assert build("skip_connect")(x) is x


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("out_channels", [8, 5])
def test_factorized_reduce_picks_even_and_odd_pixels(height, width, out_channels):
    x = images(height, width)
    torch.manual_seed(0)
    reduce = FactorizedReduce(12, out_channels, affine=False).double()
    half = out_channels // 2
    expected = torch.zeros(3, out_channels, -(-height // 2), -(-width // 2), dtype=torch.float64)
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            expected[:, :half, row, column] = (
                x[:, :, 2 * row, 2 * column].relu() @ reduce.even.weight[:, :, 0, 0].T
            )
            if 2 * row + 1 < height and 2 * column + 1 < width:
                pixel = x[:, :, 2 * row + 1, 2 * column + 1].relu()
                expected[:, half:, row, column] = pixel @ reduce.odd.weight[:, :, 0, 0].T
    torch.testing.assert_close(reduce(x), normalised(expected))


def test_skip_connect_at_stride_two_is_a_factorized_reduce():
    skip = build("skip_connect", 2)
    assert isinstance(skip, FactorizedReduce)
    torch.manual_seed(0)
    alike = FactorizedReduce(12, 12, affine=False).double()
    torch.testing.assert_close(skip(images()), alike(images()))


def depthwise_block(x, depthwise, pointwise, stride, dilation):
    """ReLU → depthwise convolution, channel by channel → 1×1 → norm."""
    padding = dilation * (depthwise.shape[-1] - 1) // 2
    channels = [
        F.conv2d(x.relu()[:, [c]], depthwise[[c]], None, stride, padding, dilation) for c in range(x.shape[1])
    ]
    return normalised(F.conv2d(torch.cat(channels, dim=1), pointwise))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("name", "kernel"), [("sep_conv_3x3", 3), ("sep_conv_5x5", 5)])
def test_sep_conv_is_two_depthwise_separable_blocks(name, kernel, stride):
    operation = build(name, stride)
    first, point, second, point2 = operation.parameters()
    assert first.shape == second.shape == (12, 1, kernel, kernel)
    middle = depthwise_block(images(), first, point, stride, 1)
    torch.testing.assert_close(operation(images()), depthwise_block(middle, second, point2, 1, 1))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("name", "kernel"), [("dil_conv_3x3", 3), ("dil_conv_5x5", 5)])
def test_dil_conv_is_one_block_with_dilation(name, kernel, stride):
    operation = build(name, stride)
    depthwise, pointwise = operation.parameters()
    assert depthwise.shape == (12, 1, kernel, kernel)
    torch.testing.assert_close(
        operation(images()), depthwise_block(images(), depthwise, pointwise, stride, 2)
    )


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_the_dense_form_of_a_separable_convolution_equals_it(height, width, stride, dilation):
    x = images(height, width, channels=4).requires_grad_()
    weights = [
        torch.randn(12, *shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 3, 3), (4, 1, 1))
    ]
    found = []
    for form in (dense, partial(separable, recompute=True)):
        y = form(x, *weights, stride, dilation)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [x, *weights])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["conv_7x7", "none"])
def test_an_unknown_operation_is_refused(name):
    with pytest.raises(ValueError, match=f"unknown operation '{name}'"):
        build(name)
