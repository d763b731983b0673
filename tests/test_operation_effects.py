"""The benchmark that explains the mAP of genotypes by their operations."""

import numpy as np
import pytest

from autoreid.config import DEFAULT_CELL_OPERATIONS
from autoreid.errors import ConfigError
from autoreid.spaces.reid_cell.genotype import random_genotype
from benchmarks.genotype_table import RANDOM, Row
from benchmarks.operation_effects import (
    CELLS,
    OPERATIONS,
    Effect,
    agreement,
    effects,
    explained,
    maps_of,
    reproducible,
    show,
    summary,
)


def table(value, genotypes=150, seeds=1, noise=0.0, seed=0):
    """Rows with a mAP that a function of the genotype's normal and reduction cell decides, and noise."""
    rng = np.random.default_rng(seed)
    for number in range(genotypes):
        genotype = random_genotype(rng)
        for training in range(seeds):
            share = value(genotype) + noise * rng.standard_normal()
            yield Row(RANDOM, str(number), str(genotype), training, share, 1000, 1.0)


def count(cell, operation):
    return sum(edge.operation == operation for node in cell for edge in node)


def test_the_effects_of_operations_are_found():
    rows = list(
        table(
            lambda one: 0.3 + 0.02 * count(one.reduce, "part_conv") - 0.01 * count(one.normal, "dil_conv_3x3")
        )
    )
    report = summary(rows, [])
    found = {(effect["cell"], effect["operation"]): effect["change"] for effect in report["effects"]}
    wanted = {("reduce", "part_conv"): 0.02, ("normal", "dil_conv_3x3"): -0.01}
    assert found == pytest.approx({key: wanted.get(key, 0.0) for key in found}, abs=1e-9)
    assert report["explained"]["operations of both cells"] == pytest.approx(1)
    assert 0.7 < report["explained"]["operations of the reduction cell"] < 0.9, "0.02² of 0.02² + 0.01²"
    assert report["explained"]["parameters"] < 0.01, "all have the same"


def test_places_are_told_from_numbers():
    def first_node(genotype):
        return 0.1 * sum(edge.operation == "sep_conv_3x3" for edge in genotype.normal[0])

    shares = summary(list(table(first_node)), [])["explained"]
    assert shares["operations of each node"] > 0.98
    assert shares["operations of both cells"] < 0.5


def test_searches_are_compared_with_the_effects():
    names = [*OPERATIONS, "skip_connect"]
    good = dict(zip(names, [0.3, 0.1, 0.2, 0.15, 0.05, 0.0], strict=True))
    of_operations = [Effect(cell, name, good[name], 0.01) for cell in CELLS for name in OPERATIONS]

    def search(variant, sign, undecided=28, genotype="part_conv"):
        row = [0.4, *(0.1 + sign * 0.2 * good.get(name, 0) for name in DEFAULT_CELL_OPERATIONS[1:])]
        of_cells = {"normal": [row, row], "reduce": [row]}
        return {
            "variant": variant,
            "undecided": undecided,
            "genotype": genotype,
            "probabilities": of_cells,
        }

    searches = [search("a", 1), search("a", -1), search("b", 1, None), search("c", 1, 28, "part_aware")]
    assert agreement(searches, of_operations) == {"a": {cell: pytest.approx([1, -1]) for cell in CELLS}}


def test_standard_errors_cover_the_truth():
    """Of the effects that are zero, about 5 % are further than two standard errors from it."""
    changes = []
    for seed in range(20):
        rows = list(table(lambda _: 0.3, noise=0.02, seed=seed))
        genotypes, maps, _ = maps_of(rows)
        changes += [effect.change / effect.error for effect in effects(genotypes, maps.mean(1))]
    assert np.std(changes) == pytest.approx(1, abs=0.2)


def test_what_is_not_noise():
    rng = np.random.default_rng(0)
    maps = 3 * rng.standard_normal((4000, 1)) + 2 * rng.standard_normal((4000, 2))
    assert reproducible(maps) == pytest.approx(9 / (9 + 4 / 2), abs=0.02)
    assert reproducible(maps[:, :1]) is None


def test_a_value_is_predicted_from_the_others():
    """Leave-one-out by the hat matrix equals fitting N times; noise is not explained."""
    rng = np.random.default_rng(0)
    features, values = rng.standard_normal((40, 3)), rng.standard_normal(40)
    values += features[:, 0]
    left = []
    for one in range(40):
        others = np.arange(40) != one
        design = np.column_stack([np.ones(39), features[others]])
        solution, *_ = np.linalg.lstsq(design, values[others], rcond=None)
        left.append(values[one] - solution @ [1, *features[one]])
    by_hand = 1 - np.sum(np.square(left)) / np.sum((values - values.mean()) ** 2)
    assert by_hand <= explained(features, values) < by_hand + 0.05, "a little more by the best ridge"
    assert explained(rng.standard_normal((40, 30)), values) < 0.1


def test_all_genotypes_need_the_same_seeds(capsys):
    rows = [row for row in table(lambda _: 0.3, seeds=2, noise=0.1) if row.seed == 0 or int(row.name) < 100]
    assert summary(rows, [])["seeds"] == 1
    report = summary(list(table(lambda _: 0.3, seeds=2, noise=0.1)), [])
    assert report["seeds"] == 2
    show(report)
    assert "not noise" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="has 10 random genotypes with seed 0"):
        summary(rows[:20], [])
