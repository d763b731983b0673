"""From a genotype or a search to a training config, and from there to a trained network."""

import json

import numpy as np
import pytest

from autoreid import derive, train
from autoreid.config import Config
from autoreid.models import count_parameters
from autoreid.recipes import load_config
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.reid_cell.derived import DerivedNetwork
from autoreid.spaces.reid_cell.genotype import random_genotype
from tests.helpers.tiny import TINY, tiny_config, write_tiny

RECIPE = {
    "task": "train",
    "model": {
        "name": "derived",
        "options": {"channels": 4, "cells_per_stage": [1, 1], "parts": 2, "stem": "darts"},
    },
    "data__held_out_fraction": 0.0,
    "evaluation__split": "test",
    "training__epochs": 1,
}


@pytest.fixture
def genotype(tmp_path):
    path = tmp_path / "found.json"
    random_genotype(np.random.default_rng(3)).save(path)
    return path


def _derive(tmp_path, source, *more) -> tuple[int, Config | None]:
    recipe = write_tiny(tmp_path, **RECIPE)
    output = tmp_path / "derived" / "net"
    status = derive.main([str(source), "--config", str(recipe), "--output", str(output), *more])
    return status, load_config(output / "config.yaml") if status == 0 else None


@pytest.mark.parametrize(
    ("folder", "name"), [("2024", "2024"), ("run #3/net", "net"), ("1e3", "1e3"), ("08", "08"), ("on", "on")]
)
def test_a_folder_may_have_any_name(tmp_path, genotype, folder, name):
    """YAML would read 2024 as a number, and #3 as a comment."""
    recipe, output = write_tiny(tmp_path, **RECIPE), tmp_path / folder
    assert derive.main([str(genotype), "--config", str(recipe), "--output", str(output)]) == 0
    config = load_config(output / "config.yaml")
    assert config.task_name == name
    assert config.model.options["genotype"] == str(output / "genotype.json")


def test_a_negative_seed_is_refused(tmp_path, genotype, capsys):
    assert _derive(tmp_path, genotype, "--random", "-1") == (2, None)
    (complaint,) = capsys.readouterr().err.splitlines()
    assert "--random -1: must be at least 0" in complaint


def test_a_genotype_becomes_a_config_that_trains(tmp_path, genotype, capsys):
    status, config = _derive(tmp_path, genotype, "model.options.channels=6")
    assert status == 0
    assert config.task_name == "net"
    folder = tmp_path / "derived" / "net"
    assert Genotype.load(folder / "genotype.json") == Genotype.load(genotype)
    pictures = {path.name for path in folder.glob("*.png")}
    assert pictures == {"genotype-normal.png", "genotype-reduce.png", "network.png"}
    parameters = count_parameters(build_model("derived", 1, **config.model.options))
    assert f"{parameters / 1e6:.2f} M parameters" in capsys.readouterr().out

    tiny_config(tmp_path, **RECIPE)
    assert train.main(["--config", str(folder / "config.yaml")]) == 0
    result = json.loads((tmp_path / "runs/net/result.json").read_text())
    assert result["parameters"] == parameters
    # The run does not depend on the genotype's file: it can be resumed and read without it.
    (folder / "genotype.json").unlink()
    text = load_config(tmp_path / "runs/net/config.yaml").model.options["genotype"]
    assert json.loads(text) == json.loads(genotype.read_text())


def test_a_finished_search_is_a_source(tmp_path):
    search = tmp_path / "search"
    search.mkdir()
    assert train.main(["--config", str(write_tiny(search))]) == 0
    status, _ = _derive(tmp_path, search / "runs" / "tiny")
    assert status == 0
    found = Genotype.load(tmp_path / "derived/net/genotype.json")
    assert found == Genotype.load(search / "genotypes/tiny/EP02.json")


@pytest.mark.slow
def test_a_random_genotype_of_about_the_same_size(tmp_path, genotype):
    sizes = []
    for seed in ("0", "0", "1"):
        status, config = _derive(tmp_path, genotype, "--random", seed)
        assert status == 0
        drawn = Genotype.load(tmp_path / "derived/net/genotype.json")
        sizes.append((count_parameters(build_model("derived", 1, **config.model.options)), drawn))
    options = RECIPE["model"]["options"]
    wanted = count_parameters(build_model("derived", 1, genotype=str(genotype), **options))
    assert all(abs(size - wanted) < 0.1 * wanted for size, _ in sizes)
    assert sizes[0] == sizes[1]
    assert sizes[0][1] != sizes[2][1] != Genotype.load(genotype)


def test_a_random_genotype_has_the_operations_of_the_search(tmp_path):
    operations = ["none", "skip_connect", "sep_conv_5x5", "dil_conv_5x5"]
    run = tmp_path / "runs" / "search"
    run.mkdir(parents=True)
    found = random_genotype(np.random.default_rng(9), 4, operations)
    (run / "result.json").write_text(json.dumps({"genotype": found.model_dump(mode="json")}))
    space = {**TINY["search"]["reid_cell"], "operations": operations, "nodes": 4}
    write_tiny(run, search__reid_cell=space).rename(run / "config.yaml")
    for seed in range(2):
        status, _ = _derive(tmp_path, run, "--random", str(seed))
        assert status == 0
        drawn = Genotype.load(tmp_path / "derived/net/genotype.json")
        used = {edge.operation for _, cell in drawn.cells() for node in cell for edge in node}
        assert used == set(operations) - {"none"}
        assert drawn != found


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("none.json", [], "none.json"),
        (".", [], "result.json: contains no genotype"),
        (
            "found.json",
            ["model.name=resnet50", "model.options={}"],
            "must have task: train and model.name: derived",
        ),
        ("found.json", ["model.options.chanels=3"], "chanels"),
        (
            "found.json",
            ["model.options.parts=33"],
            "data.height 32, data.width 16: too small for the network",
        ),
        ("found.json", ["trainin.epochs=3"], "did you mean training"),
    ],
)
def test_errors_are_one_line_and_status_2(tmp_path, genotype, capsys, source, more, message):
    status, _ = _derive(tmp_path, tmp_path / source, *more)
    assert status == 2
    (complaint,) = capsys.readouterr().err.splitlines()
    assert message in complaint
    assert not (tmp_path / "derived").exists(), "no partial output"


@pytest.mark.slow
def test_drop_path_grows_over_the_epochs(tmp_path, genotype):
    changes = RECIPE | {
        "training__epochs": 4,
        "model": {
            "name": "derived",
            "options": RECIPE["model"]["options"]
            | {"genotype": str(genotype), "drop_path": 0.4, "auxiliary": True},
        },
    }
    seen = []

    original = DerivedNetwork.forward

    def forward(network, images):
        if network.training and not images.is_meta:  # shapes are computed on the meta device
            seen.append(network.drop_path)
            output = original(network, images)
            assert len(output) == 3, "the auxiliary head is trained"
            return output
        return original(network, images)

    tiny_config(tmp_path, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DerivedNetwork, "forward", forward)
        assert train.main(["--config", str(write_tiny(tmp_path, **changes))]) == 0
    assert sorted(set(seen)) == pytest.approx([0.0, 0.1, 0.2, 0.3])
