from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import CELL_OPERATIONS, DEFAULT_CELL_OPERATIONS, ReidCell, Search
from autoreid.spaces.reid_cell.cells import count_edges
from autoreid.spaces.reid_cell.genotype import Edge
from autoreid.spaces.reid_cell.operations import FactorizedReduce
from autoreid.spaces.reid_cell.space import ReidCellSpace
from tests.helpers.per_edge import MixedOperation, PerEdgeCell

OPERATIONS = DEFAULT_CELL_OPERATIONS


def random_mixing(nodes=4, operations=OPERATIONS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count_edges(nodes), len(operations))
    return {
        kind: torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
        for kind in ("normal", "reduce")
    }


def build(seed=0, identities=5, **options):
    settings = ReidCell(**{"channels": 4, "stem": "darts", "cells_per_stage": (1, 1)} | options)
    torch.manual_seed(seed)
    return ReidCellSpace(Search(reid_cell=settings)).build_supernet(identities).double()


def images(height=32, width=16, batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize(("nodes", "edges"), [(1, 2), (2, 5), (3, 9), (4, 14), (7, 35)])
def test_count_edges(nodes, edges):
    assert count_edges(nodes) == edges


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operations", [OPERATIONS, ("skip_connect", "none", "sep_conv_5x5")])
def test_a_mixed_operation_is_the_weighted_sum(operations, stride):
    torch.manual_seed(0)
    mixed = MixedOperation(operations, 6, stride, parts=4).double()
    x = torch.randn(2, 6, 9, 6, dtype=torch.float64)
    weights = torch.rand(len(operations), dtype=torch.float64)
    singles = iter(mixed.candidates)
    expected = torch.zeros(2, 6, -(-9 // stride), -(-6 // stride), dtype=torch.float64)
    for weight, name in zip(weights, operations, strict=True):
        if name != "none":
            expected = expected + weight * next(singles)(x)
    assert not list(singles)
    torch.testing.assert_close(mixed(x, weights), expected)


@pytest.mark.parametrize("column", range(len(OPERATIONS)))
def test_mixing_weight_on_one_operation_gives_that_operation(column):
    torch.manual_seed(0)
    mixed = MixedOperation(OPERATIONS, 6, 2, parts=4).double()
    x = torch.randn(2, 6, 8, 6, dtype=torch.float64)
    alone = mixed(x, F.one_hot(torch.tensor(column), len(OPERATIONS)).double())
    if OPERATIONS[column] == "none":
        assert alone.shape == (2, 6, 4, 3)
        assert not alone.any()
    else:
        torch.testing.assert_close(alone, mixed.candidates[mixed.columns.index(column)](x))


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("after_reduction", [False, True])
@pytest.mark.parametrize("nodes", [2, 4])
def test_a_cell_is_the_sum_over_each_nodes_edges(reduction, after_reduction, nodes):
    torch.manual_seed(0)
    cell = PerEdgeCell(OPERATIONS, nodes, 4, (10, 8), 6, reduction, after_reduction).double()
    older = torch.randn(2, 10, 15 if after_reduction else 8, 9 if after_reduction else 5, dtype=torch.float64)
    newer = torch.randn(2, 8, 8, 5, dtype=torch.float64)
    mixing = random_mixing(nodes)["normal"]
    states = [cell.preprocess0(older), cell.preprocess1(newer)]
    edge = 0
    for _ in range(nodes):
        total = 0
        for state in list(states):
            total = total + cell.edges[edge](state, mixing[edge])
            edge += 1
        states.append(total)
    assert edge == len(cell.edges) == len(mixing)
    output = cell(older, newer, mixing)
    assert output.shape == (2, nodes * 6, *((4, 3) if reduction else (8, 5)))
    torch.testing.assert_close(output, torch.cat(states[2:], dim=1))


def shapes_of(net, x, mixing):
    """The output shapes (channels, height, width) of the stem and of each cell."""
    shapes = []
    hooks = [
        module.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
        for module in [net.stem, *net.cells]
    ]
    net(x, mixing)
    for hook in hooks:
        hook.remove()
    return shapes


@pytest.mark.parametrize(
    ("cells_per_stage", "kinds"),
    [
        ((1, 1, 1), ["normal", "reduce", "reduce"]),
        ((2, 3, 3), ["normal", "normal", "reduce", "normal", "normal", "reduce", "normal", "normal"]),
    ],
)
@pytest.mark.parametrize(("stem", "divisor"), [("darts", 1), ("resnet", 4)])
def test_macro_structure(cells_per_stage, kinds, stem, divisor):
    net = build(cells_per_stage=cells_per_stage, stem=stem, channels=2)
    assert net.kinds == kinds
    height, width = 64 // divisor, 48 // divisor
    expected, channels = [(6, height, width)], 2
    for kind in kinds:
        if kind == "reduce":
            channels, height, width = 2 * channels, height // 2, width // 2
        expected.append((4 * channels, height, width))
    assert shapes_of(net, images(64, 48), random_mixing()) == expected
    for previous, cell in zip(["normal", *kinds[:-1]], net.cells, strict=True):
        assert isinstance(cell.preprocess0, FactorizedReduce) == (previous == "reduce")
    embedding, logits = net(images(64, 48), random_mixing())
    assert net.embedding_size == 4 * channels
    assert embedding.shape == (2, net.embedding_size)
    assert logits.shape == (2, 5)


def test_odd_image_sizes_are_supported():
    net = build(cells_per_stage=(1, 1, 1), stem="resnet", parts=2)
    assert shapes_of(net, images(67, 45), random_mixing())[-1] == (64, 5, 3)


def test_the_macro_structure_of_auto_reid_fast():
    """Auto-ReID-Fast: a stem of 3C at full resolution, then a normal and two reduction cells, C = 16."""
    net = build(channels=16, cells_per_stage=(1, 1, 1), identities=751).float()
    mixing = {kind: weights.float() for kind, weights in random_mixing().items()}
    with torch.no_grad():
        shapes = shapes_of(net, torch.randn(2, 3, 256, 128), mixing)
    assert shapes == [(48, 256, 128), (64, 256, 128), (128, 128, 64), (256, 64, 32)]
    # Theirs has 0.83 M weights, with a different part-aware operation. Ours has 0.67 M, 0.19 M in the classifier.
    weights = sum(weight.numel() for weight in net.parameters())
    classifier = net.neck.classifier.weight.numel()
    assert classifier == 256 * 751
    assert 0.4e6 < weights - classifier < weights < 0.83e6


def test_embedding_and_logits():
    """The embedding is the mean over pixels, before the neck. Each cell uses the mixing weights of its kind."""
    net, mixing = build(), random_mixing()
    stem = net.stem(images())
    first = net.cells[0](stem, stem, mixing["normal"])
    second = net.cells[1](stem, first, mixing["reduce"])
    embedding, logits = net(images(), mixing)
    torch.testing.assert_close(embedding, second.flatten(2).mean(2))
    torch.testing.assert_close(logits, net.neck(embedding))
    torch.testing.assert_close(net(images(), mixing)[0], embedding)


def test_none_everywhere_gives_zero_nodes():
    net = build()
    none = F.one_hot(torch.zeros(count_edges(4), dtype=torch.int64), len(OPERATIONS)).double()
    outputs = []
    for cell in net.cells:
        cell.register_forward_hook(lambda *call: outputs.append(call[2]))
    embedding, _ = net(images(), {"normal": none, "reduce": none})
    assert len(outputs) == 2
    assert not any(output.any() for output in [*outputs, embedding])


def test_the_embedding_of_an_image_does_not_depend_on_its_batch_in_evaluation():
    net, mixing = build(), random_mixing()
    net(images(), mixing)
    net.eval()
    together = net(images(), mixing)
    alone = net(images()[:1], mixing)
    torch.testing.assert_close(alone, together[:1])


def test_every_weight_and_every_mixing_weight_gets_a_gradient():
    net = build(channels=16)
    mixing = {kind: weights.requires_grad_() for kind, weights in random_mixing().items()}
    embedding, logits = net(images(batch=8), mixing)
    (embedding.square().sum() + F.cross_entropy(logits, torch.arange(8) % 5)).backward()
    without_gradient = [
        name
        for name, weight in net.named_parameters()
        # Adding a constant to all keys does not change the softmax.
        if weight.requires_grad and not name.endswith("key.bias") and not weight.grad.any()
    ]
    assert without_gradient == []
    for weights in mixing.values():
        for column, operation in enumerate(OPERATIONS):
            assert weights.grad[:, column].all() == (operation != "none")


def test_the_space_names_its_choices():
    space = ReidCellSpace(Search(reid_cell=ReidCell(nodes=3, operations=("none", "skip_connect"))))
    choices = space.choices()
    assert {kind: group.shape for kind, group in choices.items()} == {"normal": (9, 2), "reduce": (9, 2)}
    assert choices["normal"] == choices["reduce"]
    assert choices["normal"].columns == ("none", "skip_connect")
    rows = list(choices["normal"].rows)
    assert rows[:4] == [
        "node0_from_c_k-2",
        "node0_from_c_k-1",
        "node1_from_c_k-2",
        "node1_from_c_k-1",
    ]
    assert rows[4:] == [
        "node1_from_node0",
        *(f"node2_from_{x}" for x in ("c_k-2", "c_k-1", "node0", "node1")),
    ]


@st.composite
def problems(draw):
    """Operations in any order, and probabilities with few different values, so that ties are common."""
    count = draw(st.integers(2, len(CELL_OPERATIONS)))
    operations = tuple(draw(st.permutations(CELL_OPERATIONS))[:count])
    nodes = draw(st.integers(2, 5))
    values = st.sampled_from([0.0, 0.5, 1.0]) if draw(st.booleans()) else st.floats(-5, 5, width=32)
    rows = st.lists(
        st.lists(values, min_size=count, max_size=count),
        min_size=count_edges(nodes),
        max_size=count_edges(nodes),
    )
    return operations, nodes, draw(rows), draw(rows)


def read_by_hand(rows, operations, nodes):
    """The expected cell: for each node, the two edges with the largest probabilities; earlier ones win ties."""
    cell, row = [], 0
    for node in range(nodes):
        edges = []
        for source in range(node + 2):
            names = [name for name in operations if name != "none"]
            best = max(rows[row][operations.index(name)] for name in names)
            first = next(
                name for name in operations if name != "none" and rows[row][operations.index(name)] == best
            )
            edges.append((best, first, source))
            row += 1
        taken = []
        for _ in range(2):
            left = [edge for edge in edges if edge not in taken]
            greatest = max(edge[0] for edge in left)
            taken.append(next(edge for edge in left if edge[0] == greatest))
        cell.append(tuple(Edge(name, source) for _, name, source in taken))
    return tuple(cell)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_the_genotype_holds_the_two_strongest_edges_of_each_node(problem):
    operations, nodes, normal, reduce = problem
    space = ReidCellSpace(Search(reid_cell=ReidCell(operations=operations, nodes=nodes)))
    probabilities = {
        "normal": torch.tensor(normal).softmax(-1),
        "reduce": torch.tensor(reduce).softmax(-1),
    }
    genotype = space.genotype(probabilities)
    for kind, cell in genotype.cells():
        assert cell == read_by_hand(probabilities[kind].tolist(), operations, nodes)
        assert len(cell) == nodes
        assert all(edge.operation in set(operations) - {"none"} for node in cell for edge in node)


def test_edges_are_ranked_by_probabilities_not_by_alphas():
    """An edge with one probable operation beats an edge whose alphas are all large. The softmax includes `none`."""
    operations = ("none", "skip_connect", "sep_conv_3x3")
    alphas = torch.zeros(5, 3)
    alphas[2] = torch.tensor([5.0, 5.0, 5.1])  # from c_k-2: the largest alphas, about a third each
    alphas[3] = torch.tensor([9.0, 1.0, 0.0])  # from c_k-1: `none` has almost all of the probability
    alphas[4] = torch.tensor([-3.0, 2.0, -3.0])  # from node 0: one probable operation
    space = ReidCellSpace(Search(reid_cell=ReidCell(operations=operations, nodes=2)))
    probabilities = alphas.softmax(-1)
    genotype = space.genotype({"normal": probabilities, "reduce": probabilities})
    assert genotype.normal[1] == (("skip_connect", 2), ("sep_conv_3x3", 0))
    by_alphas = space.genotype({"normal": alphas, "reduce": alphas})
    assert by_alphas.normal[1] == (("sep_conv_3x3", 0), ("skip_connect", 2))


def test_one_hot_probabilities_are_read_as_they_are():
    """Two edges of each node have an operation, and the others have `none`."""
    space = ReidCellSpace(Search())
    chosen = {
        "normal": ((("part_conv", 0), ("sep_conv_3x3", 1)), (("skip_connect", 2), ("max_pool_3x3", 0))),
        "reduce": ((("avg_pool_3x3", 1), ("dil_conv_3x3", 0)), (("part_conv", 1), ("part_conv", 2))),
    }
    last = ((("part_conv", 3), ("skip_connect", 1)), (("sep_conv_3x3", 4), ("part_conv", 3)))
    chosen = {kind: cell + last for kind, cell in chosen.items()}
    probabilities = {}
    for kind, cell in chosen.items():
        rows = []
        for node, edges in enumerate(cell):
            decided = {source: operation for operation, source in edges}
            # A smaller value for the second edge gives the order of `chosen`.
            for source in range(node + 2):
                row = torch.zeros(len(OPERATIONS))
                row[OPERATIONS.index(decided.get(source, "none"))] = 0.9 if edges[1][1] == source else 1.0
                rows.append(row)
        probabilities[kind] = torch.stack(rows)
    genotype = space.genotype(probabilities)
    assert dict(genotype.cells()) == chosen
