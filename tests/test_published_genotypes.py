"""The genotypes that ship with the package, against the authors' own lists."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from autoreid.spaces.genotype import Genotype

SHIPPED = Path(__file__).parents[1] / "searched_genotypes/published"
TORCHREID = json.loads((Path(__file__).parent / "data/torchreid_models.json").read_text())
MSINET = json.loads((Path(__file__).parent / "data/msinet.json").read_text())
PUBLISHED = json.loads((Path(__file__).parent / "data/published_genotypes.json").read_text())["reid_cell"]


def test_every_published_genotype_ships_and_no_other():
    assert {path.stem for path in SHIPPED.glob("*.json")} == {*PUBLISHED, "osnet_ain", "msinet"}


def test_osnet_ain_ships_with_its_picture():
    """The blocks that torchreid's osnet_ain_x1_0 is made of, told by the norms among its weights."""
    names = [name for name, _ in TORCHREID["osnet_ain_x1_0"]["state_dict"]]
    blocks = [f"conv{stage}.{place}." for stage in (2, 3, 4) for place in (0, 1)]
    has_in = [any(name.startswith(block + "IN.") for name in names) for block in blocks]
    genotype = Genotype.load(SHIPPED / "osnet_ain.json")
    assert genotype.blocks == tuple("in_inside" if inside else "plain" for inside in has_in)
    text = (SHIPPED / "osnet_ain-blocks.gv").read_text()
    assert re.findall(r"<b>(in_inside|plain)</b>", text) == list(genotype.blocks)
    with Image.open(SHIPPED / "osnet_ain-blocks.png") as picture:
        assert picture.width > picture.height > 100


def test_msinet_ships_with_its_picture():
    names = MSINET["child"]["genotype"]
    genotype = Genotype.load(SHIPPED / "msinet.json")
    assert [*genotype.interactions] == names
    text = (SHIPPED / "msinet-cells.gv").read_text()
    assert re.findall(r">(none|ag|cross_att|exc)\b", text) == names
    with Image.open(SHIPPED / "msinet-cells.png") as picture:
        assert picture.width > picture.height > 100


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_what_ships_is_what_was_published(name, kind):
    cell = dict(Genotype.load(SHIPPED / f"{name}.json").cells())[kind]
    assert [[list(edge) for edge in node] for node in cell] == PUBLISHED[name][kind]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("kind", ["normal", "reduce"])
def test_its_picture_ships_too(name, kind):
    text = (SHIPPED / f"{name}-{kind}.gv").read_text()
    drawn = Counter(re.findall(r"edge\d[ab] \[label=(\w+)", text))
    assert drawn == Counter(operation for node in PUBLISHED[name][kind] for operation, _ in node)
    with Image.open(SHIPPED / f"{name}-{kind}.png") as picture:
        assert picture.width > picture.height > 100
