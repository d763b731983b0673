import numpy as np
import pytest

from autoreid.errors import ConfigError
from benchmarks import genotype_table
from benchmarks.genotype_table import (
    EXTREME,
    RANDOM,
    RANKED,
    Row,
    fill,
    genotypes_of_table,
    means,
    read_table,
    standing,
    summary,
)
from benchmarks.results_folder import ResultsFolder
from benchmarks.trainings import Trained


def rows(maps: dict[str, list[float]], kind: str = RANDOM) -> list[Row]:
    return [
        Row(kind, name, name, seed, value, 1000, 1.0)
        for name, values in maps.items()
        for seed, value in enumerate(values)
    ]


def test_means_are_over_all_seeds_asked_for():
    table = rows({"a": [0.2, 0.4], "b": [0.5]})
    assert means(table, [0, 1]) == {"a": pytest.approx(0.3)}
    assert means(table, [0]) == {"a": 0.2, "b": 0.5}


def test_a_standing_agrees_with_sorting():
    values = np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, 150)).tolist()
    table = rows({str(number): [value] for number, value in enumerate(values)})
    table += rows({"extreme": [0.99]}, EXTREME) + rows({"found": [0.99]}, RANKED)
    for value in (0.0, 0.3, 0.55, 1.0):
        expected = np.searchsorted(sorted(values), value) / 150
        assert standing(value, table, [0]) == (pytest.approx(expected), 150)
    middle = sorted(values)[75]
    assert standing(middle, table, [0]).below == pytest.approx(75.5 / 150), "an equal one counts half"


def test_no_standing_without_random_genotypes_of_these_seeds():
    with pytest.raises(ConfigError, match=r"all of \[0, 1\]"):
        standing(0.5, rows({"a": [0.2]}), [0, 1])


def test_a_larger_table_holds_the_smaller_one():
    small, large = genotypes_of_table(3, seed=5), genotypes_of_table(7, seed=5)
    assert [one for one in large if one[0] == RANDOM][:3] == small[:3]
    assert len({str(genotype) for _, _, genotype in large}) == 7 + 7
    assert small[0] != genotypes_of_table(3, seed=6)[0]
    assert {name for kind, name, _ in small if kind == EXTREME} >= {
        "skip_connect",
        "part_aware",
        "avg_pool_3x3",
    }


@pytest.fixture
def trainings(monkeypatch):
    """Instead of trainings: what was asked for, and a mAP that the seed decides."""
    asked = []

    def train(config, world):
        asked.append((config.model.options["genotype"], config.seed))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return Trained(0.1 * config.seed, {}, 1000, 2.0)

    monkeypatch.setattr(genotype_table, "train_network", train)
    return asked


def test_an_interrupted_table_resumes_where_it_was(tmp_path, trainings):
    arguments = genotype_table.parse(["--folder", str(tmp_path)])
    config, wanted = genotype_table.recipe(tmp_path, arguments), genotypes_of_table(2, seed=0)
    folder = ResultsFolder(tmp_path, {})
    assert config.data.synthetic["synthetic_people"].test_identities == 160
    with pytest.raises(KeyboardInterrupt):
        fill(folder, wanted, range(2), config, world=None)
    with (tmp_path / "table.jsonl").open("a") as table:
        table.write('{"kind": "rand')  # killed while it wrote
    assert len(read_table(folder)) == 4
    fill(folder, wanted, range(2), config, world=None)
    table = read_table(folder)
    assert [(row.genotype, row.seed) for row in table] == [
        (str(genotype), seed) for seed in range(2) for _, _, genotype in wanted
    ]
    assert len(trainings) == len(table) + 1, "only the interrupted training is repeated"


def test_a_table_needs_a_random_genotype_and_a_seed(capsys):
    for option in ("--genotypes", "--seeds"):
        with pytest.raises(ConfigError, match=f"{option} 0: must be at least 1"):
            genotype_table.parse(["--folder", "DIR", option, "0"])
    with pytest.raises(ConfigError, match="no random genotype of the table was trained with all of"):
        summary(rows({"found": [0.4]}, RANKED), seeds=[0])


def test_a_folder_keeps_its_settings(tmp_path):
    ResultsFolder(tmp_path / "table", {"epochs": 6, "seed": 0})
    ResultsFolder(tmp_path / "table", {"epochs": 6, "seed": 0})
    with pytest.raises(ConfigError, match="epochs is 6, not 7"):
        ResultsFolder(tmp_path / "table", {"epochs": 7, "seed": 0})


def test_the_summary_tells_random_genotypes_from_others():
    report = summary(
        rows({"a": [0.2, 0.4], "b": [0.4, 0.6]}) + rows({"found": [0.4, 0.4]}, RANKED), seeds=[0, 1]
    )
    assert (report["genotypes"], report["mean"]) == (2, pytest.approx(0.4))
    assert report["others"] == [{"kind": RANKED, "name": "found", "map": pytest.approx(0.4), "below": 0.5}]
