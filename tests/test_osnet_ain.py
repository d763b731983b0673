"""The osnet_ain space: its supernet, reading genotypes, and derived networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoreid.config import OsnetAin, Search
from autoreid.errors import ConfigError
from autoreid.models import count_macs, count_parameters, load_weights
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.osnet_ain.blocks import MixedBlock
from autoreid.spaces.osnet_ain.derived import DerivedOSNet
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS, OsnetAinGenotype
from autoreid.spaces.osnet_ain.space import OsnetAinSpace
from autoreid.spaces.reid_cell.genotype import CellGenotype
from tests.helpers.torchreid import fixtures, their_images, their_state

PUBLISHED = OsnetAinGenotype(
    stages=(("in_inside", "in_inside"), ("plain", "in_inside"), ("in_inside", "plain"))
)
EVERY_BLOCK = OsnetAinGenotype.of_blocks(["in_both", "in_after", "plain", "in_inside", "in_after", "plain"])


def space(width=0.25):
    return OsnetAinSpace(Search(space="osnet_ain", osnet_ain=OsnetAin(width=width)))


def supernet(seed=0):
    torch.manual_seed(seed)
    return space().build_supernet(5).double()


def images(count=4, height=32, width=32):
    return torch.randn(count, 3, height, width, dtype=torch.float64)


def columns(genotype):
    return {"sample": {"blocks": [OSNET_BLOCKS.index(block) for block in genotype.blocks]}}


def one_hot(genotype):
    return {"blocks": torch.eye(4, dtype=torch.float64)[columns(genotype)["sample"]["blocks"]]}


class Uniform(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x, {"blocks": torch.full((6, 4), 0.25, device=x.device)})[0]


def test_the_supernet_is_as_large_as_the_published_one():
    network = space(1.0).build_supernet(751)
    assert round(count_parameters(network) / 1e6, 2) == 6.34
    assert round(count_macs(Uniform(network), 256, 128) / 1e9, 2) == 2.95


def test_no_norm_of_the_supernet_has_a_scale():
    norms = [
        module
        for module in supernet().modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d)
    ]
    assert len(norms) > 24 * 10
    assert not any(list(norm.parameters()) for norm in norms)


def test_choices():
    (group,) = space().choices().values()
    assert group.shape == (6, 4)
    assert group.columns == OSNET_BLOCKS
    assert group.rows[0] == "stage1_block1"
    assert group.rows[5] == "stage3_block2"
    assert not space().has_collapsed(OsnetAinGenotype.of_blocks(["plain"] * 6))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=6, max_size=6))
def test_the_genotype_has_the_most_probable_block_at_each_position(rows):
    genotype = space().genotype({"blocks": torch.tensor(rows)})
    assert genotype.blocks == tuple(OSNET_BLOCKS[row.index(max(row))] for row in rows)


def test_a_mixed_block_is_the_weighted_sum_of_the_four():
    torch.manual_seed(0)
    block = MixedBlock(16, 64).double()
    x, weights = torch.randn(3, 16, 9, 5, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    outputs = [block[name](x) for name in OSNET_BLOCKS]
    expected = sum(weight * output for weight, output in zip(weights.tolist(), outputs, strict=True))
    torch.testing.assert_close(block(x, weights), expected)
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 4


def gradients(network, batch, *mixing, **sample):
    network.zero_grad()
    embedding, logits = network(batch, *mixing, **sample)
    (embedding.square().mean() + logits.logsumexp(1).mean()).backward()
    return {name: weight.grad for name, weight in network.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_equals_a_one_hot_mixture_and_computes_no_other_block(training):
    batch, calls = images(), []
    network = supernet().train(training)
    expected = network(batch, one_hot(EVERY_BLOCK))
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in OSNET_BLOCKS:
            module.register_forward_hook(lambda *_, name=name: calls.append(name.rpartition(".")[2]))
    found = network(batch, **columns(EVERY_BLOCK))
    assert tuple(calls) == EVERY_BLOCK.blocks, "one candidate at each position, and no other"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    if training:
        full = gradients(network, batch, one_hot(EVERY_BLOCK))
        alone = gradients(network, batch, **columns(EVERY_BLOCK))
        for name, gradient in full.items():
            torch.testing.assert_close(alone[name], gradient if alone[name] is not None else None)
            assert alone[name] is not None or not gradient.any(), name


def test_alphas_have_the_gradient_of_the_mixture():
    """Compared with central differences along random directions. The steps are small, to cross few kinks of ReLUs."""
    network, batch = supernet(), images()
    weights = torch.rand(6, 4, dtype=torch.float64).softmax(-1).requires_grad_()

    def loss(mixing):
        embedding, logits = network(batch, {"blocks": mixing})
        return embedding.square().mean() + logits.logsumexp(1).mean()

    (gradient,) = torch.autograd.grad(loss(weights), weights)
    assert gradient.ne(0).all()
    for _ in range(3):
        direction = torch.randn(6, 4, dtype=torch.float64)
        with torch.no_grad():
            numerical = (loss(weights + 1e-8 * direction) - loss(weights - 1e-8 * direction)) / 2e-8
        assert (gradient * direction).sum().item() == pytest.approx(numerical.item(), rel=1e-3)


def build(genotype=PUBLISHED, identities=5, **options):
    return build_model("derived", identities, genotype=str(genotype), **options)


def test_the_published_genotype_is_osnet_ain():
    network, published = build(identities=751), build_model("osnet_ain_x1_0", 751)
    assert isinstance(network, DerivedOSNet)
    # The structure: all modules with their settings, except the root.
    assert str(network).partition("\n")[2] == str(published).partition("\n")[2]
    shapes = {name: value.shape for name, value in published.state_dict().items()}
    assert {name: value.shape for name, value in network.state_dict().items()} == shapes
    assert round(count_parameters(network) / 1e6, 2) == 2.17
    assert round(count_macs(network, 256, 128) / 1e9, 2) == 0.98


def test_it_loads_torchreids_weights_and_gives_torchreids_features(tmp_path):
    fixture = fixtures()["osnet_ain_x1_0"]
    network = build(identities=fixture["num_classes"]).eval()
    torch.save(their_state("osnet_ain_x1_0"), tmp_path / "theirs.pth")
    report = load_weights(network, tmp_path / "theirs.pth")
    assert report.skipped == {}
    assert report.missing == ()
    with torch.no_grad():
        feature = network(their_images(fixture["input"])).double()
    scale = 1e-4 * fixture["feature_mean"][0]
    assert feature[:, :8].tolist() == pytest.approx(np.array(fixture["feature_first8"]), rel=1e-4, abs=scale)


@pytest.mark.parametrize("genotype", [PUBLISHED, EVERY_BLOCK])
def test_it_inherits_the_weights_of_its_blocks(genotype):
    """With inherited weights, a derived network equals the supernet that computes only the chosen blocks."""
    network, derived = supernet(), build(genotype, width=0.25).double()
    for _ in range(3):  # changes the running statistics from their initial values
        network(images(8), {"blocks": torch.rand(6, 4, dtype=torch.float64).softmax(-1)})
    inherited = space().inherited(network.state_dict(), genotype)
    missing, unexpected = derived.load_state_dict(inherited, strict=False)
    assert not unexpected
    norms = {name for name, module in derived.named_modules() if hasattr(module, "affine")}
    assert {name.rpartition(".")[0] for name in missing} <= norms
    assert {name.rpartition(".")[2] for name in missing} == {"weight", "bias"}
    batch = images()
    for mode in (False, True):
        found = derived.train(mode)(batch)
        expected = network.train(mode)(batch, **columns(genotype))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_another_spaces_options_and_networks_are_refused():
    with pytest.raises(
        ConfigError, match=r"derived \(osnet_ain\) has no option 'channels'; its options are: genotype"
    ):
        build(channels=16)
    with pytest.raises(ConfigError, match=r"width = 0\.1: must be at least 0\.25"):
        build(width=0.1)
    cell = ((("skip_connect", 0), ("part_aware", 1)),)
    with pytest.raises(ConfigError, match=r"derived \(reid_cell\) has no option 'width'"):
        build(CellGenotype(normal=cell, reduce=cell), width=1.0)


def test_the_published_genotype_is_included():
    shipped = Path(__file__).parents[1] / "searched_genotypes/published/osnet_ain.json"
    assert Genotype.load(shipped) == PUBLISHED
