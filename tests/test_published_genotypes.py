"""The genotypes that ship with the package, against the authors' own lists."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from autoreid.search.genotype import Genotype

SHIPPED = Path(__file__).parents[1] / "searched_genotypes/published"
PUBLISHED = json.loads((Path(__file__).parent / "data/published_genotypes.json").read_text())["reid_cell"]


def test_every_published_genotype_ships_and_no_other():
    assert {path.stem for path in SHIPPED.glob("*.json")} == set(PUBLISHED)


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
