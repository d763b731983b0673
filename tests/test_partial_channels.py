"""Partial channels and edge weights: compared with the publication, and how genotypes are read from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoreid.config import CELL_OPERATIONS, DEFAULT_CELL_OPERATIONS, ReidCell, Search
from autoreid.reporting.genotype_graph import draw_genotype
from autoreid.search.alphas import Alphas
from autoreid.search.relaxations import Softmax
from autoreid.search.signs import search_signs
from autoreid.spaces.reid_cell.cells import count_edges
from autoreid.spaces.reid_cell.genotype import Edge
from autoreid.spaces.reid_cell.partial_channels import bypass, join, weighted_sum
from autoreid.spaces.reid_cell.space import ReidCellSpace

OPERATIONS = DEFAULT_CELL_OPERATIONS


def build(**options):
    search = Search(
        reid_cell=ReidCell(**{"channels": 4, "stem": "darts", "cells_per_stage": (1, 1)} | options)
    )
    torch.manual_seed(0)
    return ReidCellSpace(search), ReidCellSpace(search).build_supernet(5)


def alphas_of(space, seed=0):
    shapes = {name: group.shape for name, group in space.choices().items()}
    return Alphas(shapes, torch.Generator().manual_seed(seed))


def test_the_shuffle_is_the_published_one():
    """As in the authors' code, which transposes (groups, channels per group)."""
    x = torch.arange(2 * 12 * 3 * 2.0).view(2, 12, 3, 2)
    published = x.view(2, 4, 3, 3, 2).transpose(1, 2).contiguous().view(2, 12, 3, 2)
    assert torch.equal(join(x[:, :3], x[:, 3:]), published)
    assert torch.equal(join(x[:, :3], x[:, 3:])[:, ::4], x[:, :3])


def test_sums_of_half_precision_maps_are_not_rounded():
    maps = [torch.randn(2, 3, 4, 4).bfloat16() for _ in range(4)]
    weights = torch.rand(4)
    found = weighted_sum([*maps[:3], maps[3].float()], weights)
    assert found.dtype == torch.float32
    expected = sum(weight.double() * x.double() for weight, x in zip(weights, maps, strict=True))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (1, 3)])
def test_bypassing_channels_are_pooled_at_stride_2(height, width):
    x = torch.randn(2, 3, height, width)
    assert bypass(x, 1) is x
    found = bypass(x, 2)
    assert found.shape == (2, 3, -(-height // 2), -(-width // 2))
    for row in range(found.shape[2]):
        for column in range(found.shape[3]):
            window = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(found[:, :, row, column], window.amax((2, 3)))


def test_the_default_is_a_search_without_partial_channels():
    """The names and initial values of the alphas must not change, so that older checkpoints still load."""
    space, supernet = build()
    assert space.choices().keys() == {"normal", "reduce"}
    generator = torch.Generator().manual_seed(0)
    for kind in ("normal", "reduce"):
        expected = 1e-3 * torch.randn(14, 7, generator=generator)
        assert torch.equal(alphas_of(space).groups[kind], expected)
    images = torch.randn(2, 3, 32, 16)
    mixing = Softmax().mixture(alphas_of(space))
    stem = supernet.stem(images)
    first = supernet.cells[0](stem, stem, mixing["normal"])
    expected = supernet.cells[1](stem, first, mixing["reduce"]).mean((2, 3))
    assert torch.equal(supernet(images, mixing)[0], expected)


def test_betas_are_groups_of_alphas_named_by_node():
    space, supernet = build(nodes=3, partial_channels=2)
    choices = space.choices()
    assert list(choices) == [
        "normal",
        "reduce",
        *(f"{k}_node{n}" for k in ("normal", "reduce") for n in range(3)),
    ]
    assert choices["reduce_node2"] == (("node2",), ("c_k-2", "c_k-1", "node0", "node1"), "reduce_edges", ())
    assert choices["normal"] == build(nodes=3)[0].choices()["normal"]
    alphas = alphas_of(space)
    embedding, logits = supernet(torch.randn(4, 3, 32, 16), Softmax().mixture(alphas))
    assert embedding.shape == (4, 3 * 8)
    (embedding.square().sum() + logits.square().sum()).backward()
    for name, alpha in alphas.groups.items():
        assert alpha.grad.abs().sum(-1).all(), name


def test_each_kind_has_its_own_edge_weights():
    """With all weight on one input of each node, the output does not depend on the other inputs."""
    space, supernet = build(partial_channels=2)
    supernet.eval()
    mixing = Softmax().probabilities(alphas_of(space))
    for name, group in space.choices().items():
        if name.startswith("reduce_"):
            mixing[name] = torch.eye(group.shape[1])[:1]
    seen = []
    cell = supernet.cells[1]
    cell.register_forward_hook(lambda *call: seen.append(call[2]))
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        supernet(images, mixing)
        cell.register_forward_pre_hook(
            lambda _, inputs: (inputs[0], torch.randn_like(inputs[1]), *inputs[2:])
        )
        supernet(images, mixing)
        mixing |= {
            name.replace("reduce", "normal"): mixing[name] for name in mixing if name.startswith("reduce_")
        }
        supernet(images, mixing)
        mixing["reduce_node1"] = mixing["reduce_node1"].roll(1, 1)
        supernet(images, mixing)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[2], seen[3])


def test_half_precision_and_channels_last_are_about_the_same():
    space, supernet = build(channels=8, partial_channels=4)
    images, mixing = torch.randn(4, 3, 32, 16), Softmax().probabilities(alphas_of(space))
    with torch.no_grad():
        expected, _ = supernet(images, mixing)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, _ = supernet(images.contiguous(memory_format=torch.channels_last), mixing)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def kept_bytes(settings, images):
    """The bytes that a forward pass saves for the backward pass, without weights."""
    torch.manual_seed(0)
    space = ReidCellSpace(Search(reid_cell=settings))
    supernet = space.build_supernet(5)
    mixing = Softmax().mixture(alphas_of(space))
    storages = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            # Keep the tensors alive, so that no address is reused.
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        supernet(images, mixing)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_fewer_channels_keep_fewer_bytes():
    images = torch.randn(2, 3, 64, 32)
    kept = [
        kept_bytes(ReidCell(channels=8, cells_per_stage=(1, 1), parts=2, partial_channels=partial), images)
        for partial in (1, 2, 4, 8)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[2] < 0.6 * kept[0]


@st.composite
def problems(draw):
    """Operations, their probabilities and those of the inputs, with few different values, so that ties are common."""
    operations = tuple(draw(st.permutations(CELL_OPERATIONS))[: draw(st.integers(2, len(CELL_OPERATIONS)))])
    nodes = draw(st.integers(2, 4))
    values = st.sampled_from([0.0, 0.25, 0.5]) if draw(st.booleans()) else st.floats(0, 1, width=32)

    def rows(count, length):
        row = st.lists(values, min_size=length, max_size=length)
        return draw(st.lists(row, min_size=count, max_size=count))

    found = {}
    for kind in ("normal", "reduce"):
        found[kind] = rows(count_edges(nodes), len(operations))
        found |= {f"{kind}_node{node}": rows(1, 2 + node) for node in range(nodes)}
    return operations, nodes, found


def read_by_hand(operations, nodes, edges_EO, inputs):
    """The expected cell: for each node, its two strongest edges; earlier ones win ties."""
    cell, row = [], 0
    for node in range(nodes):
        edges = []
        for source in range(node + 2):
            names = {name: edges_EO[row][column] for column, name in enumerate(operations) if name != "none"}
            best = max(names.values())
            # The choice of the operation depends on the alphas only, even if the edge has weight 0.
            operation = next(name for name, value in names.items() if value == best)
            edges.append((best * inputs[node][0][source], operation, source))
            row += 1
        strongest = sorted(edges, key=lambda edge: (-edge[0], edge[2]))[:2]
        cell.append(tuple(Edge(operation, source) for _, operation, source in strongest))
    return tuple(cell)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_a_genotype_ranks_edges_by_their_weight_times_their_operations(problem):
    operations, nodes, values = problem
    space = ReidCellSpace(Search(reid_cell=ReidCell(operations=operations, nodes=nodes, partial_channels=4)))
    assert {name: group.shape for name, group in space.choices().items()} == {
        name: (len(rows), len(rows[0])) for name, rows in values.items()
    }
    genotype = space.genotype({name: torch.tensor(rows) for name, rows in values.items()})
    for kind, cell in genotype.cells():
        inputs = [values[f"{kind}_node{node}"] for node in range(nodes)]
        assert cell == read_by_hand(operations, nodes, values[kind], inputs)


def test_an_edge_with_a_large_weight_beats_one_with_a_probable_operation():
    space = ReidCellSpace(
        Search(
            reid_cell=ReidCell(
                operations=("none", "skip_connect", "sep_conv_3x3"), nodes=2, partial_channels=4
            )
        )
    )
    values = {name: torch.full(group.shape, 1 / group.shape[1]) for name, group in space.choices().items()}
    values["normal"][2:] = torch.tensor([[0.0, 1.0, 0.0], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]])
    values["normal_node1"][0] = torch.tensor([0.1, 0.5, 0.4])
    # The strengths are 0.1, 0.2 and 0.2. The first one wins the tie.
    assert space.genotype(values).normal[1] == (("sep_conv_3x3", 1), ("skip_connect", 2))


def test_signs_and_pictures_of_a_search_with_betas(tmp_path):
    space = ReidCellSpace(Search(reid_cell=ReidCell(partial_channels=4)))
    probabilities = Softmax().probabilities(alphas_of(space))
    probabilities["normal_node2"] = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    signs = search_signs(probabilities, space.choices(), space.watched(), dict.fromkeys(probabilities, 1))
    kinds = ("normal", "reduce")
    shares = {f"{kind}/{name}" for kind in kinds for name in space.watched()}
    values = {f"{kind}{of}" for kind in kinds for of in ("", "_edges")}
    assert signs.keys() == shares | {
        f"{v}/{sign}" for v in values for sign in ("entropy", "margin", "undecided")
    }
    assert signs["normal_edges/undecided"] == 1
    # Nodes with 2, 3 and 5 inputs have equal weights; the node with 4 inputs uses two of them.
    expected = (math.log(2) + math.log(3) + math.log(2) + math.log(5)) / 4
    assert signs["normal_edges/entropy"] == pytest.approx(expected, abs=1e-4)
    assert signs["normal/skip_share"] == pytest.approx(1 / 7, abs=1e-3)
    pictures = draw_genotype(space.genotype(probabilities), tmp_path, "found", "")
    assert {path.name for path in pictures} == {"found-normal.png", "found-reduce.png"}
