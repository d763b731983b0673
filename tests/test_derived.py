from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autoreid.config import CELL_OPERATIONS, ReidCell, Search
from autoreid.errors import ConfigError, DataError
from autoreid.models import count_parameters
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import read_genotype, with_genotype_text
from autoreid.spaces.reid_cell.cells import count_edges
from autoreid.spaces.reid_cell.derived import DerivedNetwork
from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge, random_genotype
from autoreid.spaces.reid_cell.space import ReidCellSpace

DATA = json.loads((Path(__file__).parent / "data/published_genotypes.json").read_text())
PUBLISHED = {
    name: CellGenotype(normal=cells["normal"], reduce=cells["reduce"])
    for name, cells in DATA["reid_cell"].items()
}


def build(genotype, identities=5, seed=0, **options):
    torch.manual_seed(seed)
    small = {"channels": 4, "stem": "darts", "cells_per_stage": (1, 2)}
    return build_model("derived", identities, genotype=str(genotype), **(small | options))


def images(batch=2, height=16, width=12, dtype=torch.float64):
    return torch.randn(batch, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(3))


def first_edge(node):
    return sum(2 + earlier for earlier in range(node))


def mixing_that_selects(genotype):
    """Mixing weights: 1 for the chosen operation on each edge, 0 for everything else."""
    mixing = {}
    for kind, cell in genotype.cells():
        weights = torch.zeros(count_edges(len(cell)), len(CELL_OPERATIONS), dtype=torch.float64)
        for node, edges in enumerate(cell):
            for operation, source in edges:
                weights[first_edge(node) + source, CELL_OPERATIONS.index(operation)] = 1
        mixing[kind] = weights
    return mixing


def copy_weights(supernet, derived):
    """Copy the weights of the chosen operations from the supernet. Only scales and shifts of norms are not copied."""
    pairs = [(supernet.stem, derived.stem), (supernet.neck, derived.neck)]
    cells = dict(derived.genotype.cells())
    for kind, searched, cell in zip(supernet.kinds, supernet.cells, derived.cells, strict=True):
        pairs += [(searched.preprocess0, cell.preprocess0), (searched.preprocess1, cell.preprocess1)]
        chosen = [(node, edge) for node, edges in enumerate(cells[kind]) for edge in edges]
        for (node, (operation, source)), module in zip(chosen, cell.edges, strict=True):
            place = searched.sources[source].index(first_edge(node) + source)
            own = searched.fans[source].weights_of(operation, place, f"fans.{source}.", searched.state_dict())
            pairs.append((own, module))
    for source, target in pairs:
        state = source if isinstance(source, dict) else source.state_dict()
        missing, unexpected = target.load_state_dict(state, strict=False)
        assert not unexpected
        norms = {name for name, module in target.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
        assert {key.rpartition(".")[0] for key in missing} <= norms


GENOTYPES = [*PUBLISHED.values(), *(random_genotype(np.random.default_rng(seed)) for seed in range(3))]
GENOTYPES.append(random_genotype(np.random.default_rng(9), 3, CELL_OPERATIONS))


@pytest.mark.parametrize("genotype", GENOTYPES)
@pytest.mark.parametrize("stem", ["darts", "resnet"])
def test_it_equals_the_supernet_with_all_other_mixing_weights_zero(genotype, stem):
    options = {"channels": 4, "cells_per_stage": (1, 2, 1), "stem": stem, "parts": 2}
    search = Search(reid_cell=ReidCell(operations=CELL_OPERATIONS, nodes=len(genotype.normal), **options))
    supernet = ReidCellSpace(search).build_supernet(5).double()
    derived = build(genotype, **options).double()
    copy_weights(supernet, derived)
    x = images(3, 35, 22)
    mixing = mixing_that_selects(genotype)
    for expected, found in zip(supernet(x, mixing), derived(x), strict=True):
        torch.testing.assert_close(found, expected)
    supernet.eval()
    derived.eval()
    # Both have seen the same batch, so their running statistics are equal too.
    expected = supernet(x, mixing)
    torch.testing.assert_close(derived(x), expected)


def parameters_by_formula(operation, c, stride):
    """The number of parameters of an operation's convolutions and norms, counted by hand."""
    hidden = -(-c // 3)
    separable = {kernel: c * kernel**2 + c * c + 2 * c for kernel in (3, 5)}
    linear = c * hidden + hidden + 2 * (hidden * hidden + hidden)
    return {
        "max_pool_3x3": 2 * c,
        "avg_pool_3x3": 2 * c,
        "skip_connect": c * c + 2 * c if stride == 2 else 0,
        "sep_conv_3x3": 2 * separable[3],
        "sep_conv_5x5": 2 * separable[5],
        "dil_conv_3x3": separable[3],
        "dil_conv_5x5": separable[5],
        "part_aware": linear + c * c + hidden * c + 2 * c,
        # Four parts, without biases and with an affine norm of each body vector.
        "part_conv": 4 * (c * hidden + 2 * hidden)
        + 2 * (hidden * hidden + hidden)
        + c * c
        + hidden * c
        + 2 * c,
    }[operation]


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_parameters_are_those_of_the_chosen_operations_only(genotype):
    c, identities = 6, 7
    network = build(genotype, identities, channels=c, cells_per_stage=(2, 1), stem="darts")
    total = 3 * 9 * 3 * c + 2 * 3 * c
    older = newer = 3 * c
    for kind in ("normal", "normal", "reduce"):
        cell = dict(genotype.cells())[kind]
        c *= 2 if kind == "reduce" else 1
        total += (older + newer) * c + 4 * c
        for edges in cell:
            for operation, source in edges:
                stride = 2 if kind == "reduce" and source < 2 else 1
                total += parameters_by_formula(operation, c, stride)
        older, newer = newer, len(cell) * c
    total += 2 * newer
    assert count_parameters(network) == total
    assert sum(parameter.numel() for parameter in network.parameters()) == total + newer * identities
    assert network.embedding_size == newer


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_genotypes_build_at_the_default_size(name, tmp_path):
    PUBLISHED[name].save(tmp_path / "genotype.json")
    network = build_model("derived", 751, genotype=str(tmp_path / "genotype.json"))
    assert [plan.kind for plan in network.plans] == ["normal", "normal"] + 3 * ["reduce", "normal"]
    assert network.embedding_size == 4 * 16 * 8
    with torch.no_grad():
        assert network.eval()(images(1, 64, 32, torch.float32)).shape == (1, 512)


@pytest.mark.parametrize(("height", "width"), [(16, 8), (17, 9), (31, 5), (4, 4), (1, 1)])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_any_input_size(height, width, auxiliary):
    genotype = random_genotype(np.random.default_rng(1), operations=CELL_OPERATIONS)
    network = build(genotype, auxiliary=auxiliary, parts=1, cells_per_stage=(1, 1, 1))
    x = images(4, height, width, torch.float32)
    embedding, *logits = network(x)
    assert embedding.shape == (4, 64)
    assert [tuple(head.shape) for head in logits] == (1 + auxiliary) * [(4, 5)]
    alone = torch.cat([network.eval()(one[None]) for one in x])
    assert alone.isfinite().all()
    torch.testing.assert_close(alone, network(x), rtol=1e-4, atol=1e-5)


def test_the_embedding_in_evaluation_is_the_output_of_the_necks_norm():
    network = build(PUBLISHED["auto_reid"])
    torch.nn.init.uniform_(network.neck.norm.running_mean)
    network.eval()
    captured = []
    network.cells[-1].register_forward_hook(lambda *call: captured.append(call[2]))
    ranked = network(images(dtype=torch.float32))
    torch.testing.assert_close(ranked, network.neck.norm(captured[0].mean((2, 3))))


# skip_connect at stride 1 is the identity, which is never dropped.
ONE_NODE = CellGenotype(
    normal=((Edge("avg_pool_3x3", 0), Edge("skip_connect", 1)),),
    reduce=((Edge("skip_connect", 0), Edge("skip_connect", 1)),),
)


def test_drop_path_drops_whole_edges_of_single_images_at_its_rate():
    cell = build(ONE_NODE).cells[0]
    batch, rate = 4000, 0.3
    x = torch.ones(batch, 12, 2, 2)
    cell.preprocess0 = torch.nn.Identity()
    cell.preprocess1 = torch.nn.Identity()
    cell.edges[0] = torch.nn.Sequential(torch.nn.Identity())
    torch.manual_seed(0)
    output = cell(x, 10 * x, rate)
    # The identity edge adds 10 to each image. The other edge adds 1/keep or 0, the same at every pixel.
    assert torch.equal(output, output[:, :1, :1, :1].expand_as(output))
    values = output[:, 0, 0, 0]
    torch.testing.assert_close(values.unique(), torch.tensor([10, 10 + 1 / (1 - rate)]))
    dropped = (values == 10).float().mean().item()
    # Four standard deviations of a binomial proportion.
    assert abs(dropped - rate) < 4 * (rate * (1 - rate) / batch) ** 0.5


def test_drop_path_samples_each_edge_separately_including_factorized_skips():
    cell = build(ONE_NODE).cells[1]
    assert cell.sources == [0, 1]
    for edge in cell.edges:
        assert not isinstance(edge, torch.nn.Identity)
    cell.preprocess0 = cell.preprocess1 = torch.nn.Identity()
    cell.edges[0] = cell.edges[1] = torch.nn.Sequential(torch.nn.Identity())
    torch.manual_seed(0)
    output = cell(torch.ones(500, 1, 1, 1), 10 * torch.ones(500, 1, 1, 1), 0.5)
    assert output.unique().tolist() == [0, 2, 20, 22]


def test_drop_path_is_used_in_training_only():
    network = build(PUBLISHED["auto_reid"], drop_path=0.5)
    x = images(4, dtype=torch.float32)
    assert network.drop_path == 0.5
    torch.manual_seed(1)
    assert not torch.allclose(network(x)[0], network(x)[0])
    network.drop_path = 0.0
    torch.testing.assert_close(network(x)[0], network(x)[0])
    network.eval()
    without = network(x)
    network.drop_path = 0.9
    assert torch.equal(network(x), without)


def test_the_auxiliary_head_follows_the_cell_at_two_thirds_and_in_training_only():
    network = build(PUBLISHED["baseline"], cells_per_stage=(2, 2, 2), auxiliary=True)
    assert network.auxiliary_after == 4
    seen = []
    network.auxiliary.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    outputs = {}
    for index, cell in enumerate(network.cells):
        cell.register_forward_hook(lambda *call, index=index: outputs.__setitem__(index, call[2]))
    _, logits, auxiliary = network(images(4, 32, 16, torch.float32))
    ((read, given),) = seen
    assert read is outputs[4]
    assert given is auxiliary
    assert auxiliary.shape == logits.shape
    auxiliary.sum().backward()
    assert network.cells[4].preprocess1.get_parameter("1.weight").grad is not None
    assert network.cells[5].preprocess1.get_parameter("1.weight").grad is None
    assert isinstance(network.eval()(images(1, 32, 16, torch.float32)), torch.Tensor)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "derived requires the option 'genotype'"),
        ({"channels": 0}, "channels = 0: must be 1 or more"),
        ({"channels": 4.5}, "channels = 4.5"),
        ({"cells_per_stage": ()}, "cells_per_stage = .*must be a list"),
        ({"cells_per_stage": (1, 0)}, "cells_per_stage"),
        ({"cells_per_stage": 3}, "cells_per_stage = 3"),
        ({"stem": "vgg"}, "stem = 'vgg': must be one of resnet, darts"),
        ({"parts": 0}, "parts = 0"),
        ({"drop_path": 1}, "drop_path = 1: must be at least 0 and less than 1"),
        ({"drop_path": "much"}, "drop_path = 'much'"),
        ({"width": 3}, "no option 'width'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    genotype = {"genotype": str(ONE_NODE)} if options else {}
    with pytest.raises(ConfigError, match=message):
        build_model("derived", 3, **genotype, **options)


def test_an_unreadable_genotype_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: cannot read the genotype"):
        build(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match=r"model\.options\.genotype: not a genotype: normal"):
        build(json.dumps({"format": 1, "space": "reid_cell", "normal": [], "reduce": []}))


def test_options_that_need_no_other_file(tmp_path):
    path = tmp_path / "EP05.json"
    PUBLISHED["auto_reid"].save(path)
    options = with_genotype_text({"genotype": str(path), "channels": 8})
    path.unlink()
    assert options["channels"] == 8
    assert read_genotype(options["genotype"]) == PUBLISHED["auto_reid"]
    assert isinstance(build_model("derived", 3, **options), DerivedNetwork)


def test_random_genotypes_are_sampled_uniformly():
    rng = np.random.default_rng(0)
    sampled = [
        random_genotype(rng, 3, ("none", "part_aware", "skip_connect", "dil_conv_5x5")) for _ in range(900)
    ]
    assert (
        {len(genotype.normal) for genotype in sampled}
        == {3}
        == {len(genotype.reduce) for genotype in sampled}
    )
    for kind in ("normal", "reduce"):
        last = [dict(genotype.cells())[kind][2] for genotype in sampled]
        _, counts = np.unique([edge.operation for edges in last for edge in edges], return_counts=True)
        assert len(counts) == 3
        assert counts.min() > 600 - 4 * (1800 * 2 / 9) ** 0.5
        _, pairs = np.unique([[edge.source for edge in edges] for edges in last], axis=0, return_counts=True)
        assert len(pairs) == 6
        assert pairs.min() > 150 - 4 * (900 * 5 / 36) ** 0.5


def test_random_genotypes_depend_on_the_seed():
    first, again, other = (random_genotype(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
