"""The msinet space: the authors' numbers, reading genotypes, derived networks and the weights that they inherit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoreid.architecture import Architecture
from autoreid.config import Msinet, Search
from autoreid.errors import ConfigError, DataError
from autoreid.models import count_macs, count_parameters, load_weights
from autoreid.models.weights import fill
from autoreid.networks import load_network
from autoreid.reporting.genotype_graph import as_graph
from autoreid.reporting.network_graph import network_graph
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.msinet.derived import from_authors
from autoreid.spaces.msinet.genotype import INTERACTIONS, PUBLISHED, MsinetGenotype
from autoreid.spaces.msinet.space import MsinetSpace
from tests.helpers.msinet import fixture, of_supernet
from tests.helpers.torchreid import formula_state, their_images

EVERY_INTERACTION = MsinetGenotype.of_interactions([*INTERACTIONS] * 3)


def space(width=0.25, **changes):
    return MsinetSpace(Search(space="msinet", msinet=Msinet(width=width), **changes))


def supernet(seed=0):
    """A narrow supernet in float64 whose attention has an effect."""
    torch.manual_seed(seed)
    network = space().build_supernet(5).double()
    for name, value in network.named_parameters():
        if "gamma" in name:
            value.data.fill_(0.5)
    return network


def images(count=4, height=32, width=32):
    return torch.randn(count, 3, height, width, dtype=torch.float64)


def columns(genotype):
    return {"sample": space().path(genotype)}


def one_hot(genotype):
    return {"interactions": torch.eye(4, dtype=torch.float64)[space().path(genotype)["interactions"]]}


def assert_recorded(found, expected, tolerance):
    """The largest difference, relative to the largest value."""
    expected = torch.tensor(expected, dtype=torch.float64)
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A file of weights as the authors' code saves it."""
    path = tmp_path_factory.mktemp("msinet") / "theirs.pth"
    torch.save(formula_state(fixture()["child"]["state_dict"]), path)
    return path


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-9)])
def test_msinet_loads_the_authors_weights_and_gives_their_features(theirs, dtype, tolerance):
    recorded = fixture()["child"]
    network = build_model("msinet_x1_0", recorded["num_classes"]).eval()
    report = load_weights(network, theirs)
    assert (report.skipped, report.missing) == ({}, ())
    with torch.no_grad():
        feature = network.to(dtype)(their_images(recorded["input"]).to(dtype))
    assert feature.shape == (2, recorded["feature_size"])
    assert_recorded(feature[:, :8], recorded["feature_first8"], tolerance)
    assert_recorded(feature[:, 512:520], recorded["feature_at_512"], tolerance)
    assert_recorded(feature.double().norm(dim=1), recorded["feature_norm"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-9)])
def test_the_supernet_gives_the_authors_embedding(dtype, tolerance):
    recorded = fixture()["supernet"]
    network = space(1.0).build_supernet(recorded["num_classes"]).eval()
    network.load_state_dict(of_supernet(formula_state(recorded["state_dict"])))
    assert sum(value.numel() for value in network.parameters()) == recorded["parameters"]
    mixing = torch.sin(1.7 * torch.arange(48, dtype=torch.float64)).view(12, 4).softmax(1)
    with torch.no_grad():
        batch = their_images(recorded["input"]).to(dtype)
        embedding = network.to(dtype)(batch, {"interactions": mixing.to(dtype)})
    assert embedding.shape == (2, recorded["embedding_size"])
    assert_recorded(embedding[:, :8], recorded["embedding_first8"], tolerance)
    assert_recorded(embedding.double().norm(dim=1), recorded["embedding_norm"], tolerance)


def test_the_network_has_the_published_interactions_and_size():
    network = build_model("msinet_x1_0", 751)
    assert [*network.genotype.interactions] == fixture()["child"]["genotype"]
    assert sum(value.numel() for value in network.parameters()) == fixture()["child"]["parameters"]
    assert round(count_parameters(network) / 1e6, 1) == 2.3, "as in the paper, without classifiers"


def test_weights_of_another_width_are_refused(theirs):
    network = build_model("derived", 751, genotype=PUBLISHED, width=0.5)
    with pytest.raises(DataError, match=r"theirs\.pth: cells\.\S+ has shape .*: the weights are for another"):
        load_weights(network, theirs)


def test_counters_of_the_authors_may_have_shape_1():
    names = [f"cells.0.conv2{branch}.bn.num_batches_tracked" for branch in ("a", "b.0")]
    network = build_model("msinet_x1_0", 2)
    weights = dict.fromkeys(names, torch.tensor([7])) | {"conv1.conv.weight": torch.zeros(64, 3, 7, 7)}
    fill(network, weights, Path("theirs.pth"))
    assert network.state_dict()["cells.0.scales1.0.bn.num_batches_tracked"] == 7


def test_names_of_both_kinds_and_branches_of_different_size_are_refused():
    ours = build_model("msinet_x1_0", 2).state_dict()
    part = torch.zeros(64, 64, 1, 1)
    theirs = {f"cells.0.conv1{branch}.conv.weight": part for branch in "ab"}
    both = from_authors(ours | theirs)
    assert both.keys() == {*ours, *theirs}
    assert all(value is ours[name] for name, value in both.items() if name in ours)
    network = build_model("msinet_x1_0", 2)
    with pytest.raises(DataError, match=r"it has no cells\.0\.conv1a\.conv, cells\.0\.conv1b\.conv"):
        fill(network, ours | theirs, Path("both.pth"), whole_trunk=True)
    theirs["cells.0.conv1b.conv.weight"] = torch.zeros(64, 32, 1, 1)
    with pytest.raises(DataError, match=r"cells\.0\.reduce\.conv\.weight has shape \(64, 64, 1, 1\)"):
        fill(network, theirs, Path("other.pth"))


def test_an_embedding_of_random_weights_is_refused(theirs, tmp_path):
    """Weights of ImageNet, for example, may lack the layers of the second part."""
    weights = torch.load(theirs, weights_only=True)
    body = {
        name: value for name, value in weights.items() if not name.startswith(("f_", "fc.", "classifier."))
    }
    torch.save(body, tmp_path / "body.pth")
    with pytest.raises(DataError, match=r"body\.pth: the file has no local_conv; embeddings would depend on"):
        load_network(tmp_path / "body.pth", Architecture("msinet_x1_0"))
    with_part = body | {name: value for name, value in weights.items() if name.startswith("f_conv.")}
    torch.save(with_part, tmp_path / "both.pth")
    assert load_network(tmp_path / "both.pth", Architecture("msinet_x1_0")).report is not None


def test_each_branch_starts_as_if_it_were_alone():
    """Kaiming's deviation for the fan out of one branch, as in the authors' code."""
    torch.manual_seed(0)
    cell = build_model("msinet_x1_0", 2).cells[6]
    for conv in cell.stacked():
        for part in conv.weight.chunk(2):
            fan_out = len(part) * part[0, 0].numel()
            assert part.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert not any(value.any() for name, value in cell.named_parameters() if "gamma" in name)


def test_choices():
    (group,) = space().choices().values()
    assert group.shape == (12, 4)
    assert group.columns == ("none", "ag", "cross_att", "exc"), "the authors' order, as in the fixture"
    assert [*group.columns] == fixture()["supernet"]["candidates_in_order"]
    assert (group.rows[0], group.rows[11]) == ("cell1_interaction1", "cell6_interaction2")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=12, max_size=12))
def test_the_genotype_has_the_most_probable_interactions(rows):
    genotype = space().genotype({"interactions": torch.tensor(rows)})
    assert genotype.interactions == tuple(INTERACTIONS[row.index(max(row))] for row in rows)
    assert genotype.cells[1] == genotype.interactions[2:4]


def test_random_genotypes_are_uniform_and_mutations_change_one_choice():
    rng = np.random.default_rng(0)
    drawn = [space().random_genotype(rng).interactions for _ in range(400)]
    for place in range(12):
        counts = [sum(names[place] == name for names in drawn) for name in INTERACTIONS]
        assert min(counts) > 60, "100 on average, with a deviation of 9"
    changed = set()
    for _ in range(300):
        mutant = space().mutated(PUBLISHED, rng).interactions
        pairs = zip(mutant, PUBLISHED.interactions, strict=True)
        (place,) = [place for place, (new, old) in enumerate(pairs) if new != old]
        changed.add((place, mutant[place]))
    assert len(changed) == 12 * 3


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_equals_a_one_hot_mixture_and_computes_no_other_interaction(training):
    batch, calls = images(), []
    network = supernet().train(training)
    expected = network(batch, one_hot(EVERY_INTERACTION))
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in INTERACTIONS:
            module.register_forward_hook(lambda *_, name=name: calls.append(name.rpartition(".")[2]))
    found = network(batch, **columns(EVERY_INTERACTION))
    assert tuple(calls) == EVERY_INTERACTION.interactions
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    weights = torch.rand(12, 4, dtype=torch.float64)
    chosen = {"interactions": weights * one_hot(EVERY_INTERACTION)["interactions"]}
    scaled = network(batch, {"interactions": weights}, **columns(EVERY_INTERACTION))
    for one, other in zip(scaled, network(batch, chosen), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("genotype", [PUBLISHED, EVERY_INTERACTION])
def test_a_derived_network_inherits_the_whole_body(genotype):
    network, derived = supernet(), build_model("derived", 5, genotype=genotype, width=0.25).double()
    for _ in range(2):  # changes the running statistics from their initial values
        network(images(8), {"interactions": torch.rand(12, 4, dtype=torch.float64).softmax(-1)})
    inherited = space().inherited(network.state_dict(), genotype)
    missing, unexpected = derived.load_state_dict(inherited, strict=False)
    assert {name.partition(".")[0] for name in missing} == {"global_head", "local_conv", "local_head"}
    assert {name.partition(".")[0] for name in unexpected} == {"neck"}
    batch = images()
    for mode in (False, True):
        found, expected = derived.train(mode)(batch), network.train(mode)(batch, **columns(genotype))
        if mode:
            found, expected = found[0], expected[0]
        torch.testing.assert_close(found[:, :128], expected)


def test_both_parts_of_the_embedding_and_their_heads():
    """The halves of the map, one by one; each head as linear layer, norm and classifier."""
    torch.manual_seed(0)
    network = build_model("derived", 7, genotype=PUBLISHED, width=0.25).double()
    batch = images(3, 80, 48)
    middle, last = network.feature_maps(batch)
    conv = network.local_conv
    local = torch.einsum("bchw,dc->bdhw", middle, conv.weight.flatten(1)) + conv.bias[:, None, None]
    assert local.shape == (3, 128, 5, 3)
    halves = torch.cat([local[:, :, :3].mean((2, 3)), local[:, :, 2:].mean((2, 3))], dim=1)
    parts = last.mean((2, 3)), halves
    embedding, logits = network(batch)
    torch.testing.assert_close(embedding, torch.cat(parts, dim=1))
    for number, (part, head) in enumerate(zip(parts, (network.global_head, network.local_head), strict=True)):
        y = part @ head.fc.weight.T
        normed = (y - y.mean(0)) / (y.var(0, correction=0) + head.norm.eps).sqrt()
        expected = normed @ head.classifier.weight.T + head.classifier.bias
        torch.testing.assert_close(logits[:, :, number], expected)
        assert not head.norm.bias.requires_grad


def test_the_width_scales_all_but_the_local_part():
    network = build_model("derived", 5, genotype=PUBLISHED, width=0.5).eval()
    assert network(images(1).float()).shape == (1, 256 + 256)
    whole = count_macs(build_model("derived", 5, genotype=PUBLISHED), 128, 64)
    assert 0.25 < count_macs(network, 128, 64) / whole < 0.4
    with pytest.raises(ConfigError, match=r"width = 0\.2: must be at least 0\.25"):
        build_model("derived", 5, genotype=PUBLISHED, width=0.2)
    with pytest.raises(
        ConfigError, match=r"derived \(msinet\) has no option 'channels'; its options are: gen"
    ):
        build_model("derived", 5, genotype=PUBLISHED, channels=16)


@pytest.mark.parametrize(("height", "width"), [(13, 13), (12, 32), (32, 12)])
def test_the_smallest_images(height, width):
    batch, mixing = images(2, height, width), {"interactions": torch.full((12, 4), 0.25, dtype=torch.float64)}
    derived = build_model("derived", 2, genotype=PUBLISHED, width=0.25).double()
    for network, inputs in ((supernet(), (batch, mixing)), (derived, (batch,))):
        if min(height, width) >= 13:
            assert network(*inputs)[0].isfinite().all()
            Msinet().check_images(height, width)
        else:
            with pytest.raises(RuntimeError, match="too small"):
                network(*inputs)
            with pytest.raises(ValueError, match=r"data\.(height|width): .* of 13 or more"):
                Msinet().check_images(height, width)


def test_all_norms_keep_their_scale():
    norms = [module for module in supernet().modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 6 * 8
    assert all(norm.affine for norm in norms)


def test_genotypes_are_stored_as_text(tmp_path):
    PUBLISHED.save(tmp_path / "msinet.json")
    assert Genotype.load(tmp_path / "msinet.json") == PUBLISHED


def tables(source):
    """The rows of each cell in a picture, as lists of texts: two for the branches, one for what spans both."""
    found = re.findall(r"^\t+cell\d \[label=<<table(.*?)</table>>", source, re.MULTILINE)
    rows = [re.findall(r"<tr>(.*?)</tr>", table) for table in found]
    return [[re.findall(r">([^<>]+)</", row) for row in table] for table in rows]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(INTERACTIONS), min_size=12, max_size=12))
def test_pictures_show_two_branches_and_the_interactions_between_their_layers(names):
    genotype = MsinetGenotype.of_interactions(names)
    source = as_graph(genotype.drawings("a caption")["cells"]).source
    cells = tables(source)
    assert [rows[0] for rows in cells] == [[f"cell {number}"] for number in range(1, 7)]
    for rows, (first, second) in zip(cells, genotype.cells, strict=True):
        light = [place for place, row in enumerate(rows) if "light 3×3" in row]
        assert [len(rows[place]) for place in light] == [2, 2], "a column for each branch"
        for place, name in zip(light, (first, second), strict=True):
            (text,) = rows[place + 1]
            assert text.partition(":")[0] == name
    count = sum(name in ("exc", "cross_att") for name in names)
    assert f"at {count} of 12 places" in source


def test_the_picture_of_a_network_has_the_shapes_of_its_maps():
    network = build_model("derived", 3, genotype=PUBLISHED, width=0.25).eval()
    shapes = []
    for cell in network.cells:
        cell.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    network(torch.randn(1, 3, 66, 34))
    source = network_graph(network, 66, 34, "a run").source
    found = [tuple(map(int, re.findall(r"\d+", rows[-1][0]))) for rows in tables(source)]
    assert found == [shape for place, shape in enumerate(shapes[-8:]) if place not in (2, 5)]
    assert f"{count_parameters(network) / 1e3:.0f} k parameters" in source
