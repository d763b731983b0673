"""Layers compute the same values in the forms for CPUs and for GPUs, and always obey the switch between them."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from autoreid.config import CELL_OPERATIONS
from autoreid.layers import cpu
from autoreid.layers.pointwise import pointwise
from autoreid.layers.separable import depthwise
from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.reid_cell.cells import SearchCell, count_edges
from autoreid.spaces.reid_cell.operations import build_operation
from tests.helpers import per_edge
from tests.helpers.derivatives import assert_same_derivatives
from tests.helpers.ranks import run_ranks
from tests.helpers.tasks import search_in_float64
from tests.helpers.tiny import OSNET, tiny_config, write_tiny


def leaf(*shape):
    seed = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=seed, dtype=torch.float64).requires_grad_()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 7), (6, 8)])
@pytest.mark.parametrize("name", CELL_OPERATIONS[1:])
def test_a_single_operation_equals_plain_modules(name, size, stride, affine):
    """As in a derived network, whose norms have a learned scale."""
    torch.manual_seed(0)
    oracle = per_edge.build_operation(name, 6, stride, affine, 3).double()
    operation = build_operation(name, 6, stride, affine, 3).double()
    for plain, fused in zip(oracle.parameters(), operation.parameters(), strict=True):
        fused.data.copy_(torch.nn.init.normal_(plain))
    names = [[name for name, _ in module.named_parameters()] for module in (operation, oracle)]

    def call(module, names):
        return lambda x, *weights: functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    functions = [call(*pair) for pair in zip((operation, oracle), names, strict=True)]
    assert_same_derivatives(*functions, [leaf(3, 6, *size), *operation.parameters()])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", [(5, 4), (2, 1)])  # more and fewer pixels than channels
def test_a_pointwise_convolution_equals_a_product(size, groups):
    def product(x, weight):
        channels = x.unflatten(1, (groups, -1)).flatten(3)
        return torch.einsum("goc,bgcp->bgop", weight.view(groups, -1, weight.shape[1]), channels).reshape(
            len(x), -1, *size
        )

    def convolution(x, weight):
        return pointwise(x, weight, groups)

    leaves = [leaf(2, 4 * groups, *size), leaf(5 * groups, 4, 1, 1)]
    assert_same_derivatives(convolution, product, leaves)
    with torch.no_grad():
        torch.testing.assert_close(convolution(*leaves), product(*leaves), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("size", [(9, 7), (6, 8), (4, 5)])
def test_a_depthwise_convolution_is_a_weighted_sum_of_shifted_maps(size, stride, dilation, kernel, copies):
    def by_taps(x, weight):
        reach = dilation * (kernel // 2)
        padded = F.pad(x, (reach,) * 4).repeat(1, copies, 1, 1)
        total = 0.0
        for row in range(kernel):
            for column in range(kernel):
                pixels = padded[:, :, row * dilation :, column * dilation :][:, :, : size[0], : size[1]]
                total = total + pixels[:, :, ::stride, ::stride] * weight[:, 0, row, column, None, None]
        return total

    def convolution(x, weight):
        return depthwise(x, weight, stride, dilation)

    assert_same_derivatives(convolution, by_taps, [leaf(2, 2, *size), leaf(2 * copies, 1, kernel, kernel)])


class Recorder(TorchDispatchMode):
    """Records the names of the operations that a device executes."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operations_of(module, device):
    """The names of the operations in a forward pass and in backward passes of both orders."""
    module = module.to(device)
    sizes, mixing = [(4, 16, 9, 6)], (4,)
    if isinstance(module, SearchCell):
        sizes, mixing = [(4, 16, 9, 6)] * 2, (count_edges(2), len(CELL_OPERATIONS))
    inputs = [torch.rand(size, device=device, requires_grad=True) for size in (*sizes, mixing)]
    leaves = [*inputs, *module.parameters()]
    with Recorder() as recorder:
        loss = module(*inputs).sin().sum()
        torch.autograd.grad(loss, leaves, retain_graph=True)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves)
    return recorder.names


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda: SearchCell(CELL_OPERATIONS, 2, 2, (16, 16), 4, reduction=False, after_reduction=False),
        lambda: SearchCell(CELL_OPERATIONS, 2, 2, (16, 16), 4, reduction=True, after_reduction=False),
        lambda: MixedBlock(16, 64),
    ],
    ids=["normal cell", "reduction cell", "OSNet block"],
)
def test_the_switch_makes_a_cpu_run_what_other_devices_run(build):
    """The meta device represents GPUs, because no layer treats it specially."""
    with cpu.gpu_forms():
        operations_of(build(), "cpu")  # caches constants, as the meta device's first call does
        found = operations_of(build(), "cpu")
    operations_of(build(), "meta")
    expected = operations_of(build(), "meta")
    assert found == expected
    assert operations_of(build(), "cpu") != expected


def test_the_switch_ends_with_its_context():
    x = torch.zeros(1)
    with cpu.gpu_forms():
        with suppress(KeyError), cpu.gpu_forms():
            raise KeyError
        assert not cpu.uses_cpu_form(x)
    assert cpu.uses_cpu_form(x)
    assert not cpu.uses_cpu_form(x.to("meta"))


def search_in_form(world, path, gpu):
    with cpu.gpu_forms() if gpu else nullcontext():
        return search_in_float64(world, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"search__order": "exact", "search__reid_cell__operations": list(CELL_OPERATIONS)},
        {"search__order": "exact", "search__reid_cell__partial_channels": 2, "training__accumulation": 2},
        OSNET | {"search__alpha_learning_rate": 0.001},
    ],
    ids=["reid_cell", "partial channels, accumulated", "osnet_ain"],
)
def test_steps_of_a_search_are_the_same_in_both_forms(tmp_path, changes):
    path = write_tiny(tmp_path, **changes)
    tiny_config(tmp_path, **changes)
    ((alphas, weights, losses, _),) = run_ranks(search_in_form, 1, path, False)
    ((found_alphas, found_weights, found_losses, _),) = run_ranks(search_in_form, 1, path, True)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found_losses, losses, **close)
    for found, expected in ((found_alphas, alphas), (found_weights, weights)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, **close, msg=lambda text, name=name: f"{name}: {text}"
            )
