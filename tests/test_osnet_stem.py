"""The searched stem of the osnet_ain space: batch norm or instance norm after the first convolution."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autoreid.config import OsnetAin, Search
from autoreid.distributed import StopSignal
from autoreid.reporting.genotype_graph import as_graph
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.osnet_ain.genotype import STEM_NORMS, OsnetAinGenotype
from autoreid.spaces.osnet_ain.space import OsnetAinSpace
from autoreid.spaces.osnet_ain.stem import MixedStem
from tests.helpers.tasks import build_search_task
from tests.helpers.tiny import OSNET

BLOCKS = ("in_both", "in_after", "plain", "in_inside", "in_after", "plain")
WITH_STEM = OSNET | {"search__osnet_ain__stem_norm": "searched"}


def space(stem="searched"):
    return OsnetAinSpace(Search(space="osnet_ain", osnet_ain=OsnetAin(width=0.25, stem_norm=stem)))


def images(count=4):
    return torch.randn(count, 3, 32, 32, dtype=torch.float64)


def supernet():
    torch.manual_seed(0)
    return space().build_supernet(5).double()


def test_the_stem_is_the_weighted_sum_of_both_norms():
    stem = MixedStem(nn.Conv2d(3, 5, 7, stride=2, padding=3, bias=False)).double()
    batch, weights = images(), torch.tensor([0.3, 0.7], dtype=torch.float64)
    x = F.conv2d(batch, stem.conv.weight, stride=2, padding=3)

    def normalised(dims):
        mean = x.mean(dims, keepdim=True)
        return F.relu((x - mean) / (x.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt())

    outputs = [normalised((0, 2, 3)), normalised((2, 3))]
    torch.testing.assert_close(stem(batch, weights), 0.3 * outputs[0] + 0.7 * outputs[1])
    for column, output in enumerate(outputs):
        torch.testing.assert_close(stem(batch, None, column), output)
        torch.testing.assert_close(stem(batch, weights, column), weights[column] * output)


def test_the_choices_and_the_genotype():
    shapes = {name: group.shape for name, group in space().choices().items()}
    assert shapes == {"blocks": (6, 4), "stem": (1, 2)}
    assert list(space("instance_norm").choices()) == ["blocks"]
    blocks = torch.eye(4)[[3, 2, 0, 1, 2, 0]]
    for column, stem in enumerate(STEM_NORMS):
        genotype = space().genotype({"blocks": blocks, "stem": torch.eye(2)[[column]]})
        assert genotype == OsnetAinGenotype.of_blocks(BLOCKS, stem)
        assert space().path(genotype) == {"blocks": [3, 2, 0, 1, 2, 0], "stem": [column]}
    assert space("instance_norm").genotype({"blocks": blocks}).stem == "instance_norm"


def test_random_genotypes_and_mutations_have_both_stems():
    rng = np.random.default_rng(0)
    genotypes = [space().random_genotype(rng) for _ in range(400)]
    assert 160 < Counter(genotype.stem for genotype in genotypes)["batch_norm"] < 240
    changed = Counter()
    for genotype in genotypes:
        mutated = space().mutated(genotype, rng)
        pairs = zip((*genotype.blocks, genotype.stem), (*mutated.blocks, mutated.stem), strict=True)
        (place,) = [place for place, (a, b) in enumerate(pairs) if a != b]
        changed[place] += 1
    assert len(changed) == 7
    assert min(changed.values()) > 30
    like = OsnetAinGenotype.of_blocks(BLOCKS, "batch_norm")
    assert like.sample_like(rng).stem == "batch_norm"


def test_only_a_batch_norm_stem_is_part_of_the_text():
    """Keys of trials and files from before there was a choice stay valid."""
    published = OsnetAinGenotype.of_blocks(BLOCKS)
    assert list(json.loads(str(published))) == ["format", "space", "stages"]
    other = OsnetAinGenotype.of_blocks(BLOCKS, "batch_norm")
    assert json.loads(str(other))["stem"] == "batch_norm"
    for genotype in (published, other):
        assert Genotype.parse(str(genotype), "test") == genotype
    assert published != other


@pytest.mark.parametrize("stem", STEM_NORMS)
def test_a_derived_network_inherits_its_stem(stem):
    genotype = OsnetAinGenotype.of_blocks(BLOCKS, stem)
    network = supernet()
    derived = build_model("derived", 5, genotype=str(genotype), width=0.25).double()
    for _ in range(3):  # changes the running statistics from their initial values
        mixing = {"blocks": torch.rand(6, 4), "stem": torch.rand(1, 2)}
        network(images(8), {name: values.double().softmax(-1) for name, values in mixing.items()})
    missing, unexpected = derived.load_state_dict(
        space().inherited(network.state_dict(), genotype), strict=False
    )
    assert not unexpected
    assert {name.rpartition(".")[2] for name in missing} == {"weight", "bias"}, "scales and shifts of norms"
    batch = images()
    path = space().path(genotype)
    one_hot = {
        name: torch.eye(shape, dtype=torch.float64)[path[name]]
        for name, shape in (("blocks", 4), ("stem", 2))
    }
    for mode in (False, True):
        found = derived.train(mode)(batch)
        network.train(mode)
        for expected in (network(batch, None, path), network(batch, one_hot)):
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)


def test_the_drawing_names_the_norm_of_the_stem():
    for stem, name in zip(STEM_NORMS, ("BN", "IN"), strict=True):
        drawing = OsnetAinGenotype.of_blocks(BLOCKS, stem).drawings("a caption")["blocks"]
        assert f"7×7, {name}" in as_graph(drawing).source


def test_a_search_learns_the_stem_and_reports_its_share(tmp_path):
    task = build_search_task(tmp_path, **WITH_STEM, training__epochs=1)
    before = {name: alpha.clone() for name, alpha in task.state.alphas.groups.items()}
    for _ in range(task.state.steps_per_epoch):
        task.step(StopSignal())
    result = task.end_epoch(StopSignal())
    assert all(not torch.equal(before[name], alpha) for name, alpha in task.state.alphas.groups.items())
    share = task.relaxation.probabilities(task.state.alphas)["stem"][0, 1].item()
    assert result.metrics["stem/in_share"] == pytest.approx(share)
    assert result.genotype.stem == STEM_NORMS[int(share > 0.5)]
