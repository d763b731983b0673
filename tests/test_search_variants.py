"""The benchmark of variants of the search."""

import numpy as np
import pytest

from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge, random_genotype
from benchmarks.genotype_table import RANDOM, Row
from benchmarks.search_variants import VARIANTS, correlations, recipe, shared_edges, show, summary


def test_shared_edges_join_the_same_nodes_by_the_same_operation():
    first = (Edge("skip_connect", 0), Edge("part_conv", 1))
    second = (Edge("skip_connect", 0), Edge("sep_conv_3x3", 1))
    one = CellGenotype(normal=(first, first), reduce=(first, second))
    other = CellGenotype(normal=(first, second), reduce=(second, first))
    assert shared_edges([one, other]) == {"normal": 3, "reduce": 2}
    assert shared_edges([one, one, other]) == {
        "normal": pytest.approx((4 + 3 + 3) / 3),
        "reduce": pytest.approx((4 + 2 + 2) / 3),
    }


def test_correlations_are_means_over_pairs():
    rng = np.random.default_rng(0)
    base, noise = rng.random((14, 7)), rng.random((14, 7))

    def search(normal):
        return {"probabilities": {"normal": normal.tolist(), "reduce": noise.tolist()}}

    found = correlations([search(base), search(2 * base + 1), search(-base)])
    assert found == {"normal": pytest.approx((1 - 1 - 1) / 3), "reduce": pytest.approx(1)}


def test_the_summary_compares_with_the_table(capsys):
    rng = np.random.default_rng(0)
    table = [Row(RANDOM, str(n), f"random{n}", 0, 0.2 + 0.001 * n, 1000 + 10 * n, 10.0) for n in range(101)]
    uniform = [[1 / 7] * 7] * 13 + [[0.4, *[0.1] * 6]]
    lines = [
        {
            "variant": "shipped",
            "search": seed,
            "genotype": str(random_genotype(rng)),
            "map": 0.28 + 0.01 * seed,
            "parameters": 1500,
            "undecided": 20,
            "search_seconds": 40.0,
            "probabilities": {"normal": uniform, "reduce": uniform},
        }
        for seed in range(3)
    ]
    lines.append({**lines[0], "variant": "raw"})
    (row,) = summary(lines, table)
    assert (row["variant"], row["searches"]) == ("shipped", 3)
    assert row["difference"] == pytest.approx(0.29 - 0.25)
    # The line gives 0.25 at 1,500 parameters.
    assert row["difference_at_equal_size"] == pytest.approx(0.29 - 0.25)
    assert row["error_at_equal_size"] == pytest.approx(0.01 / 3**0.5)
    assert row["median_above"] == pytest.approx(90.5 / 101)
    found, random, num_found, num_random = row["equal_cost"]
    assert (num_found, num_random) == (3, 15), "a search with its training costs five trainings"
    assert found == pytest.approx(0.3)
    # The expected maximum of 15 of 0, ..., 100 is 15 · 102 / 16 - 1.
    assert random == pytest.approx(0.2 + 0.001 * (15 * 102 / 16 - 1))
    show([row])
    assert "+4.0" in capsys.readouterr().out


def test_every_variant_is_a_valid_recipe(tmp_path):
    (tmp_path / "settings.json").write_text('{"test_people": 160}')
    configs = [recipe(tmp_path, variant, seed=3) for variant in VARIANTS]
    assert {config.seed for config in configs} == {3}
    assert all(config.data.synthetic["synthetic_people"].test_identities == 160 for config in configs)
    assert all(config.evaluation.every_epochs == config.training.epochs for config in configs)
