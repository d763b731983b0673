"""Batch normalisation over ranks: values, memory and communication of several processes against one."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import distributed as dist

from autoreid import distributed
from autoreid.config import ReidCell, Search
from autoreid.distributed import sum_over_ranks
from autoreid.layers.batch_norm import Norm, normalise_together, share_batch_statistics
from autoreid.spaces.reid_cell.space import ReidCellSpace
from tests.helpers.ranks import run_ranks

MOMENTUM, EPS = 0.3, 1e-3
SHAPES = ((8, 3, 5, 4), (8, 2, 4, 6), (8, 5), (8, 3, 5, 4))


def _maps(world):
    """This rank's rows of three maps of different shapes and layouts, and parameters and statistics for some."""
    generator = torch.Generator().manual_seed(7)
    xs = [torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 20 for shape in SHAPES[:3]]
    rows = 8 // world.size
    xs = [x[world.rank * rows : (world.rank + 1) * rows] for x in xs]
    xs[1] = xs[1].contiguous(memory_format=torch.channels_last)
    weights = [torch.randn(shape[1], generator=generator, dtype=torch.float64) for shape in SHAPES]
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (*xs, *weights, bias)]
    statistics = [torch.zeros(2, 3, dtype=torch.float64) + 0.5, torch.zeros(2, 5, dtype=torch.float64) + 2]
    return leaves, statistics


def _normalised(leaves, statistics):
    """Four maps, the last computed from the first; one weight that is not a leaf, and one map without a weight."""
    x0, x1, x2, w0, _, w2, w3, bias = leaves
    return normalise_together(
        [
            Norm(x0, *statistics[0], w0.exp()),
            Norm(x1),
            Norm(x2, *statistics[1], w2, bias),
            Norm(x0 * x0, weight=w3),
        ],
        training=True,
        momentum=MOMENTUM,
        eps=EPS,
        shared=True,
    )


def _differentiate(world):
    """Outputs, running statistics, plain and differentiable gradients, and second derivatives."""
    leaves, statistics = _maps(world)
    used = [leaf for place, leaf in enumerate(leaves) if place != 4]
    outputs = _normalised(leaves, statistics)
    loss = sum((y.sin() * (place + 1)).sum() for place, y in enumerate(outputs))
    plain = torch.autograd.grad(loss, used, retain_graph=True)
    first = torch.autograd.grad(loss, used, create_graph=True)
    of_maps = sum(dx.cos().sum() for dx in first[:3])
    of_parameters = sum(sum_over_ranks(gradient).cos().sum() for gradient in first[3:]) / world.size
    second = torch.autograd.grad(of_maps + of_parameters, used)
    return [[value.detach() for value in values] for values in (outputs, statistics, plain, first, second)]


def _combined(results, place, maps):
    """The ranks' values as one process would have them: maps concatenated, gradients of parameters summed."""
    columns = zip(*(result[place] for result in results), strict=True)
    return [torch.cat(column) if index < maps else sum(column) for index, column in enumerate(columns)]


@pytest.fixture(scope="module")
def alone():
    (result,) = run_ranks(_differentiate, 1)
    return result


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_normalise_and_differentiate_twice_as_one_process_does(alone, ranks):
    results = run_ranks(_differentiate, ranks)
    close = {"rtol": 1e-10, "atol": 1e-12}
    for place, maps in ((0, 4), (2, 3), (3, 3), (4, 3)):
        for value, wanted in zip(_combined(results, place, maps), alone[place], strict=True):
            torch.testing.assert_close(value, wanted, **close)
    for result in results:
        torch.testing.assert_close(result[1], alone[1], **close)


def test_one_process_has_torchs_values(alone):
    with distributed.setup("cpu") as world:
        leaves, statistics = _maps(world)
    running = statistics[1].clone()
    y = torch.nn.functional.batch_norm(leaves[2], *running, leaves[5], leaves[7], True, MOMENTUM, EPS)
    torch.testing.assert_close(alone[0][2], y.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(alone[1][1], running, rtol=1e-12, atol=1e-12)


def _collectives(world):
    """The number of collectives of each kind in a forward, a backward and a differentiable backward pass."""
    calls, counts = Counter(), []

    def counted(name, original):
        def call(*arguments, **options):
            calls[name] += 1
            return original(*arguments, **options)

        return call

    for name in ("all_gather", "all_reduce"):
        setattr(dist, name, counted(name, getattr(dist, name)))
    leaves, statistics = _maps(world)
    outputs = _normalised(leaves, statistics)
    counts.append(dict(calls))
    for create_graph in (False, True):
        calls.clear()
        sum(y.sin().sum() for y in outputs).backward(retain_graph=True, create_graph=create_graph)
        counts.append(dict(calls))
    return counts


def test_all_maps_take_one_collective_in_each_direction():
    for forward, backward, differentiable in run_ranks(_collectives, 2):
        assert forward == {"all_gather": 1}
        assert backward == {"all_reduce": 1}
        assert differentiable == {"all_gather": 1, "all_reduce": 1}


def _kept(world, precision):
    """Bytes saved for the backward pass of 8 images, without weights, and the share of them that is bfloat16."""
    torch.manual_seed(1)
    search = Search(reid_cell=ReidCell(channels=4, cells_per_stage=(1, 1), nodes=3, parts=2))
    space = ReidCellSpace(search)
    network = share_batch_statistics(space.build_supernet(10))
    mixing = {
        name: torch.full((len(group.rows), len(group.columns)), 0.1, requires_grad=True)
        for name, group in space.choices().items()
    }
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor.dtype)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        outputs = network(torch.rand(8, 3, 128, 64), mixing)
    for weight in network.parameters():
        storages.pop(weight.untyped_storage().data_ptr(), None)
    assert all(output.requires_grad for output in outputs)
    total = sum(size for size, _ in storages.values())
    return total, sum(size for size, dtype in storages.values() if dtype == torch.bfloat16) / total


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ranks_keep_for_an_image_what_one_process_keeps(precision):
    ((alone, in_bfloat16),) = run_ranks(_kept, 1, precision)
    assert alone > 1e6
    assert in_bfloat16 > 0.5 if precision == "bfloat16" else in_bfloat16 == 0
    for kept, _ in run_ranks(_kept, 2, precision):
        assert kept == pytest.approx(alone, rel=0.05)
