"""The fused cell equals the per-edge one, with all or partial channels: outputs, gradients, statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoreid.config import CELL_OPERATIONS, ReidCell, Search
from autoreid.spaces.reid_cell.cells import SearchCell, count_edges, edges_from
from autoreid.spaces.reid_cell.space import ReidCellSpace
from tests.helpers.fused import (
    EXACT,
    assert_all_close,
    assert_recomputing_only_saves_memory,
    assert_same,
    first_derivatives,
    second_derivatives,
    statistics,
)
from tests.helpers.per_edge import per_edge_cell


def build(operations, nodes=3, channels=6, reduction=False, after_reduction=False, partial=1):
    """A fused cell in float64 and its oracle."""
    torch.manual_seed(0)
    arguments = (operations, nodes, 2, (10, 8), channels, reduction, after_reduction, partial)
    cell = SearchCell(*arguments).double()
    for name, buffer in cell.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return cell, per_edge_cell(cell, *arguments)


def images(height, width, after_reduction=False, batch=3):
    older = (2 * height - 1, 2 * width) if after_reduction else (height, width)
    return [
        torch.randn(batch, 10, *older, dtype=torch.float64, requires_grad=True),
        torch.randn(batch, 8, height, width, dtype=torch.float64, requires_grad=True),
    ]


def draw_mixing(operations, nodes, partial):
    """Mixing weights, and edge weights if the cell has partial channels."""
    shapes = [(count_edges(nodes), len(operations)), (count_edges(nodes),)]
    return [
        torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in shapes[: 1 + (partial > 1)]
    ]


def by_edge(cell, values):
    """A fused cell's values, with the keys that `of_oracle` gives to the oracle's values."""
    found = {name: value for name, value in values.items() if name.startswith("preprocess")}
    for source, (fan, edges) in enumerate(zip(cell.fans, cell.sources, strict=True)):
        for place, edge in enumerate(edges):
            for column, name in enumerate(fan.candidates):
                own = fan.weights_of(name, place, f"fans.{source}.", values)
                found |= {(edge, column, index): value for index, value in enumerate(own.values())}
    return found


def of_oracle(oracle, values):
    found = {name: value for name, value in values.items() if name.startswith("preprocess")}
    for edge, mixed in enumerate(oracle.edges):
        for column in range(len(mixed.candidates)):
            prefix = f"edges.{edge}.candidates.{column}."
            own = [value for name, value in values.items() if name.startswith(prefix)]
            found |= {(edge, column, index): value for index, value in enumerate(own)}
    return found


@pytest.mark.usefixtures("form")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    operations=st.lists(st.sampled_from(CELL_OPERATIONS[1:]), min_size=1, max_size=8, unique=True),
    none=st.booleans(),
    size=st.sampled_from([(8, 6), (9, 7), (5, 4), (4, 9)]),
    reduction=st.booleans(),
    after_reduction=st.booleans(),
    nodes=st.integers(2, 4),
    partial=st.sampled_from([1, 2, 3]),
)
def test_outputs_gradients_and_statistics(operations, none, size, reduction, after_reduction, nodes, partial):
    operations = [*operations, "none"] if none else operations
    cell, oracle = build(operations, nodes, 6, reduction, after_reduction, partial)
    inputs = [*images(*size, after_reduction), *draw_mixing(operations, nodes, partial)]
    (found, weights), (expected, expected_weights) = (
        first_derivatives(net, *inputs) for net in (cell, oracle)
    )
    assert_all_close(found, expected)
    assert_same(by_edge(cell, weights), of_oracle(oracle, expected_weights))
    assert_same(by_edge(cell, statistics(cell)), of_oracle(oracle, statistics(oracle)))
    cell.eval(), oracle.eval()
    torch.testing.assert_close(cell(*inputs), oracle(*inputs), **EXACT)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("partial", [1, 2])
@pytest.mark.parametrize("reduction", [False, True])
def test_second_derivatives(reduction, partial):
    cell, oracle = build(CELL_OPERATIONS, 2, 4, reduction, partial=partial)
    inputs = [*images(9, 6, batch=2), *draw_mixing(CELL_OPERATIONS, 2, partial)]
    found, expected = (second_derivatives(net, *inputs) for net in (cell, oracle))
    assert_all_close(found, expected)


@pytest.mark.usefixtures("form")
def test_in_bfloat16_it_is_as_close_to_float32_as_the_oracle():
    cell, oracle = build(CELL_OPERATIONS, 3, 8)
    cell, oracle = cell.float(), oracle.float()
    inputs = [x.detach().float() for x in images(12, 8, batch=6)]
    mixing = torch.rand(count_edges(3), len(CELL_OPERATIONS), requires_grad=True)
    found = {}
    for name, net in (("cell", cell), ("oracle", oracle)):
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = net(*inputs, mixing)
            (gradient,) = torch.autograd.grad(output.float().tanh().sum(), mixing)
            found[name, half] = output.float(), gradient
    for place in (0, 1):
        exact = found["oracle", False][place]
        torch.testing.assert_close(found["cell", False][place], exact, rtol=1e-3, atol=1e-3)
        errors = {name: (found[name, True][place] - exact).norm() for name in ("cell", "oracle")}
        assert errors["cell"] < 1.5 * errors["oracle"] < 0.2 * exact.norm()


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_one_operation_an_edge(reduction, seed):
    cell, oracle = build(CELL_OPERATIONS, 3, 6, reduction)
    inputs = images(9, 7)
    columns = torch.randint(len(CELL_OPERATIONS), (9,), generator=torch.Generator().manual_seed(seed))
    one_hot = torch.nn.functional.one_hot(columns, len(CELL_OPERATIONS)).double()
    torch.testing.assert_close(
        cell(*inputs, None, columns=columns.tolist()), oracle(*inputs, one_hot), **EXACT
    )
    output = cell(*inputs, None, columns=columns.tolist())
    chosen = torch.autograd.grad(output.sin().sum(), inputs)
    for value, wanted in zip(
        chosen, torch.autograd.grad(oracle(*inputs, one_hot).sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(value, wanted, **EXACT)


@pytest.mark.parametrize("reduction", [False, True])
def test_one_operation_an_edge_by_its_weight(reduction):
    """GDAS computes the sampled candidates only, and gives their weights a gradient."""
    cell, oracle = build(CELL_OPERATIONS, 3, 6, reduction)
    inputs, (mixing,) = images(9, 7), draw_mixing(CELL_OPERATIONS, 3, 1)
    columns = torch.randint(
        -1, len(CELL_OPERATIONS), (9,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    found, expected = (net(*inputs, mixing, columns=columns) for net in (cell, oracle))
    torch.testing.assert_close(found, expected, **EXACT)
    of_mixing, theirs = (torch.autograd.grad(output.sin().sum(), mixing)[0] for output in (found, expected))
    torch.testing.assert_close(of_mixing, theirs, **EXACT)
    chosen = torch.zeros_like(of_mixing, dtype=torch.bool)
    for edge, column in enumerate(columns):
        chosen[edge, column] = column >= 0
    assert not of_mixing[~chosen].any()


def supernets(partial=1):
    """A supernet without recomputation, one that recomputes its cells, images and mixing weights."""
    nets = []
    for setting in ("none", "cell"):
        torch.manual_seed(0)
        search = Search(
            reid_cell=ReidCell(
                channels=4, partial_channels=partial, cells_per_stage=(1, 1), nodes=2, parts=2
            ),
            activation_checkpointing=setting,
        )
        space = ReidCellSpace(search)
        nets.append(space.build_supernet(5).double())
    mixing = {
        name: torch.rand(group.shape, dtype=torch.float64, requires_grad=True)
        for name, group in space.choices().items()
    }
    return *nets, torch.randn(4, 3, 64, 32, dtype=torch.float64), mixing


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("partial", [1, 2])
def test_recomputing_cells_changes_nothing_but_what_is_kept(partial):
    plain, recomputing, x, mixing = supernets(partial)
    assert_recomputing_only_saves_memory(plain, recomputing, x, mixing, share=0.5)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("partial", [1, 2])
def test_recomputing_uses_the_weights_of_the_call_and_has_second_derivatives(partial):
    found = []
    *nets, x, mixing = supernets(partial)
    for net in nets:
        others = {name: (2 * weight).detach().requires_grad_() for name, weight in net.named_parameters()}
        loss = torch.func.functional_call(net, others, (x, mixing))[0].sin().sum()
        gradients = torch.autograd.grad(loss, list(others.values()), create_graph=True, allow_unused=True)
        length = sum(gradient.square().sum() for gradient in gradients if gradient is not None)
        found.append(torch.autograd.grad(length, list(mixing.values())))
    for value, wanted in zip(*found, strict=True):
        torch.testing.assert_close(value, wanted, **EXACT)


def test_edges_from_each_source():
    """Edges are numbered node by node, and within a node source by source."""
    numbered = {}
    for node in range(4):
        for source in range(2 + node):
            numbered.setdefault(source, []).append(len([e for edges in numbered.values() for e in edges]))
    assert {source: edges_from(source, 4) for source in range(5)} == numbered
