"""The benchmark that divides the differences between networks among their normal and reduction cells."""

import numpy as np
import pytest

from autoreid.errors import ConfigError
from benchmarks import crossed_cells, genotype_table
from benchmarks.crossed_cells import crossed, effect, fill, rest, show, summary
from benchmarks.results_folder import ResultsFolder
from benchmarks.trainings import Trained

SIZES = np.add.outer(np.arange(6.0), np.arange(6.0))


def lines(maps):
    return [
        {"normal": row, "reduce": column, "map": value, "parameters": 1000 * row + column}
        for (row, column), value in np.ndenumerate(maps)
    ]


def test_without_noise_the_deviations_are_those_of_the_cells():
    normal, reduce = np.array([0.10, 0.12, 0.17, 0.05]), np.array([0.3, 0.1, 0.2, 0.7])
    report = summary(lines(normal[:, None] + reduce))
    assert report["cells"] == 4
    assert report["rest"] == pytest.approx(0, abs=1e-12)
    assert report["normal"]["deviation"] == pytest.approx(np.std(normal, ddof=1))
    assert report["reduce"]["deviation"] == pytest.approx(np.std(reduce, ddof=1))
    # The sizes in `lines` grow with the number of the cell.
    assert report["normal"]["size_correlation"] == pytest.approx(np.corrcoef(normal, np.arange(4))[0, 1])
    assert report["reduce"]["size_correlation"] == pytest.approx(np.corrcoef(reduce, np.arange(4))[0, 1])


def test_with_noise_the_variances_are_right_on_average(monkeypatch):
    monkeypatch.setattr(crossed_cells, "_PERMUTATIONS", 10)
    rng = np.random.default_rng(0)
    deviations, noise = [], []
    for _ in range(300):
        maps = 0.03 * rng.standard_normal((6, 1)) + 0.02 * rng.standard_normal((6, 6))
        deviations.append(effect(maps, SIZES).deviation ** 2)
        noise.append(rest(maps) ** 2)
    assert np.sqrt(np.mean(deviations)) == pytest.approx(0.03, rel=0.1)
    assert np.sqrt(np.mean(noise)) == pytest.approx(0.02, rel=0.05)


def test_p_is_small_only_if_the_cells_matter(monkeypatch):
    monkeypatch.setattr(crossed_cells, "_PERMUTATIONS", 2000)
    rng = np.random.default_rng(1)
    noise = 0.02 * rng.standard_normal((40, 6, 6))
    alone = np.array([effect(maps + rng.standard_normal(6), SIZES).p for maps in noise])
    assert 0.35 < alone.mean() < 0.65, "differences between columns do not count"
    assert (alone < 0.05).sum() <= 6
    matters = [effect(maps + 0.04 * np.arange(6)[:, None], SIZES).p for maps in noise]
    assert max(matters) < 0.001


def test_only_complete_squares_count(capsys):
    maps = np.arange(9.0).reshape(3, 3)
    assert crossed(lines(maps)[:-1], "map").tolist() == [[0, 1], [3, 4]]
    with pytest.raises(ConfigError, match="at least two cells"):
        summary(lines(maps)[:1])
    show(summary(lines(maps)))
    assert "3 normal and 3 reduction cells, 9 networks: mAP 400.0%" in capsys.readouterr().out


def test_more_cells_add_trainings(tmp_path, monkeypatch):
    asked = []

    def train(config, world):
        asked.append(config.model.options["genotype"])
        return Trained(0.1, {}, 1000, 2.0)

    monkeypatch.setattr(genotype_table, "train_network", train)
    folder = ResultsFolder(tmp_path, {})
    config = genotype_table.recipe(tmp_path, genotype_table.parse(["--folder", str(tmp_path)]))
    fill(folder, 2, config, world=None)
    assert len(crossed(folder.read(crossed_cells.RESULTS), "map")) == 2
    fill(folder, 3, config, world=None)
    assert len(crossed(folder.read(crossed_cells.RESULTS), "map")) == 3
    assert len(set(asked)) == len(asked) == 9
