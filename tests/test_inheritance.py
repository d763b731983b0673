"""Derived networks that inherit the weights of their supernet, and files from which they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autoreid import derive, train
from autoreid.config import DEFAULT_CELL_OPERATIONS, Search
from autoreid.errors import DataError
from autoreid.recipes import load_config
from autoreid.spaces.build import build_model, build_space
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.inheritance import load_start
from autoreid.spaces.msinet.genotype import MsinetGenotype
from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype
from autoreid.spaces.reid_cell.genotype import CellGenotype, random_genotype
from tests.helpers.tiny import MSINET, OSNET, write_tiny
from tests.helpers.trained import small_network, write_checkpoint

BLOCKS = OsnetAinGenotype.of_blocks(["in_both", "in_after", "plain", "in_inside", "plain", "plain"])
MSINET_GENOTYPE = MsinetGenotype.of_interactions(["exc", "cross_att", "ag", "none"] * 3)
CELLS = random_genotype(np.random.default_rng(1), nodes=2)
LAYOUT = {"channels": 2, "cells_per_stage": (1, 1), "stem": "darts", "parts": 2}


def search_checkpoint(folder: Path, **changes) -> tuple[Path, torch.nn.Module]:
    """A search's checkpoint as the loop saves it, and its supernet, with running statistics of random images."""
    config = load_config(write_tiny(folder, **changes))
    space = build_space(config.search)
    torch.manual_seed(3)
    supernet = space.build_supernet(7)
    shapes = {name: group.shape for name, group in space.choices().items()}
    for _ in range(2):
        supernet(torch.randn(6, 3, 32, 32), {name: torch.rand(shape) for name, shape in shapes.items()})
    state = {"network": supernet.state_dict(), "alphas": {}}
    path = folder / "search.pt"
    torch.save({"state": state, "config": config.to_yaml(), "num_identities": 7}, path)
    return path, supernet.eval()


def one_hot(genotype, operations=DEFAULT_CELL_OPERATIONS):
    """Mixing weights with which a `reid_cell` supernet equals the network of a genotype."""
    mixing = {}
    for kind, cell in genotype.cells():
        mixing[kind] = torch.zeros(sum(2 + node for node in range(len(cell))), len(operations))
        for node, edges in enumerate(cell):
            first = sum(2 + earlier for earlier in range(node))
            for operation, source in edges:
                mixing[kind][first + source, operations.index(operation)] = 1
    return mixing


def test_osnet_inherits_the_weights_of_its_supernet(tmp_path):
    path, supernet = search_checkpoint(tmp_path, **OSNET)
    network = build_model("derived", 7, genotype=str(BLOCKS), width=0.25)
    report = load_start(network, path)
    assert report.skipped == {}
    columns = [["plain", "in_inside", "in_after", "in_both"].index(block) for block in BLOCKS.blocks]
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = supernet(images, sample={"blocks": columns})
        torch.testing.assert_close(network.eval()(images), expected)
        torch.testing.assert_close(network.classifier(expected), supernet.classifier(expected))


def test_msinet_inherits_all_but_its_heads(tmp_path):
    path, supernet = search_checkpoint(tmp_path, **MSINET)
    network = build_model("derived", 7, genotype=str(MSINET_GENOTYPE), width=0.25)
    report = load_start(network, path)
    assert {name.partition(".")[0] for name in report.missing} == {"global_head", "local_conv", "local_head"}
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        path = build_space(Search(space="msinet")).path(MSINET_GENOTYPE)
        torch.testing.assert_close(network.eval()(images)[:, :128], supernet(images, sample=path))


def test_cells_inherit_the_weights_of_their_supernet(tmp_path):
    path, supernet = search_checkpoint(tmp_path)
    network = build_model("derived", 9, genotype=str(CELLS), **LAYOUT, auxiliary=True)
    report = load_start(network, path)
    assert list(report.skipped) == ["neck.classifier.weight"], "it has a different number of identities"
    images = torch.randn(2, 3, 32, 16)
    with torch.no_grad():
        expected = supernet(images, one_hot(CELLS))
        torch.testing.assert_close(network.eval()(images), expected)


@pytest.mark.parametrize(
    ("changes", "name", "options", "message"),
    [
        (OSNET, "derived", {"genotype": str(BLOCKS), "width": 0.5}, "the weights are for another network"),
        (OSNET, "osnet_ain_x0_25", {}, "the checkpoint of a search needs model.name: derived"),
        (
            OSNET,
            "derived",
            {"genotype": str(CELLS)} | LAYOUT,
            "the checkpoint of a search of osnet_ain needs a genotype of osnet_ain, not of reid_cell",
        ),
        ({}, "derived", {"genotype": str(BLOCKS)}, "needs a genotype of reid_cell, not of osnet_ain"),
        (
            {},
            "derived",
            {"genotype": str(CELLS)} | LAYOUT | {"cells_per_stage": (1, 2)},
            "the search's supernet has no cells.2",
        ),
        ({}, "derived", {"genotype": str(CELLS)} | LAYOUT | {"channels": 4}, "another network"),
        (
            {"search__reid_cell__operations": ["none", "skip_connect", "part_aware"]},
            "derived",
            {"genotype": str(CellGenotype(normal=CELLS.normal[:1] * 2, reduce=CELLS.reduce))} | LAYOUT,
            "the search's supernet has no cells.",
        ),
        (
            {"search__reid_cell__partial_channels": 2},
            "derived",
            {"genotype": str(CELLS)} | LAYOUT,
            "search.reid_cell.partial_channels of the search is 2, so its operations have fewer channels than",
        ),
    ],
)
def test_incompatible_checkpoints_are_refused_in_one_line(tmp_path, changes, name, options, message):
    path, _ = search_checkpoint(tmp_path, **changes)
    with pytest.raises(DataError, match=r"^\S*search\.pt: ") as caught:
        load_start(build_model(name, 7, **options), path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_of_a_training_can_be_loaded_too(tmp_path):
    trained, other, averaged = small_network(0), small_network(1), small_network(2)
    path = write_checkpoint(tmp_path / "train.pt", trained)
    assert load_start(other, path).missing == ()
    for name, value in trained.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    ema = {f"module.{name}": value for name, value in averaged.state_dict().items()}
    path = write_checkpoint(tmp_path / "ema.pt", trained, ema=ema | {"n_averaged": torch.tensor(3)})
    load_start(other, path)
    for name, value in averaged.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "picture", "parameters"),
    [
        (OSNET, "blocks", 0.17e6),
        pytest.param(MSINET, "cells", 0.32e6, marks=pytest.mark.slow),
    ],
    ids=["osnet_ain", "msinet"],
)
def test_a_search_is_derived_and_trained_from_its_checkpoint(tmp_path, changes, picture, parameters):
    """With the commands that a user runs. --random samples another genotype."""
    recipe = write_tiny(tmp_path, **changes, training__epochs=1)
    assert train.main(["--config", str(recipe)]) == 0
    training = write_tiny(
        tmp_path,
        task="train",
        data__held_out_fraction=0.0,
        data__width=32,
        evaluation__split="test",
        training__epochs=1,
        model={"name": "derived", "options": {"width": 0.25}},
    )
    (checkpoint,) = (tmp_path / "runs/tiny/checkpoints").glob("step-*.pt")
    found = [str(tmp_path / "runs/tiny"), "--config", str(training), f"model.weights={checkpoint}"]
    assert derive.main([*found, "--output", str(tmp_path / "derived/found")]) == 0
    assert derive.main([*found, "--output", str(tmp_path / "derived/random"), "--random", "0"]) == 0
    genotype = Genotype.load(tmp_path / "derived/found/genotype.json")
    assert genotype == Genotype.load(tmp_path / "genotypes/tiny/EP01.json")
    assert Genotype.load(tmp_path / "derived/random/genotype.json") != genotype
    pictures = {path.name for path in (tmp_path / "derived/found").glob("*.png")}
    assert pictures == {f"genotype-{picture}.png", "network.png"}
    assert train.main(["--config", str(tmp_path / "derived/found/config.yaml")]) == 0
    result = json.loads((tmp_path / "runs/found/result.json").read_text())
    assert result["parameters"] == pytest.approx(parameters, rel=0.3)
