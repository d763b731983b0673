"""Tournaments: successive halving, and the command that runs it on real trainings."""

import json

import numpy as np
import pytest

from autoreid import derive, tournament
from autoreid.commands import tournament as work
from autoreid.models import count_parameters
from autoreid.recipes import load_config
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.reid_cell.genotype import random_genotype
from autoreid.training.task import TrainTask
from autoreid.trials.halving import halve
from autoreid.trials.runner import TrialRunner
from autoreid.trials.trial_file import TrialFile
from tests.helpers.tiny import DERIVED_TRAINING, TINY, write_tiny


def test_the_better_half_goes_on_twice_as_long():
    calls = []
    # The better an entry, the longer it takes to show: 5 leads at first, 2 is the best in the end.
    curves = {0: (1, 1), 1: (4, 4), 2: (5, 40), 3: (2, 2), 4: (3, 3), 5: (9, 9), 6: (0, 99)}

    def measure(entries, epochs):
        calls.append((list(entries), epochs))
        return [curves[entry][epochs > 3] for entry in entries]

    rounds = halve(7, 3, measure)
    assert calls == [([0, 1, 2, 3, 4, 5, 6], 3), ([1, 2, 4, 5], 6), ([2, 5], 12)]
    assert [one.kept for one in rounds] == [[1, 2, 4, 5], [2, 5], [2]]
    assert rounds[1].scores == {1: 4, 2: 40, 4: 3, 5: 9}


def test_ties_go_to_those_that_come_first():
    rounds = halve(5, 1, lambda entries, epochs: [0.5] * len(entries))
    assert [one.kept for one in rounds] == [[0, 1, 2], [0, 1], [0]]


def test_one_entry_wins_without_a_round_and_a_stop_ends_it():
    assert halve(1, 1, lambda entries, epochs: pytest.fail("trained")) == []
    assert halve(4, 1, lambda entries, epochs: None if epochs > 1 else [1.0] * len(entries)) is None


def search_result(folder, name, genotype, **search):
    """A run folder like that of a finished search."""
    run = folder / "runs" / name
    run.mkdir(parents=True)
    if genotype is not None:
        (run / "result.json").write_text(
            json.dumps({"genotype": genotype.model_dump(mode="json"), "map": 0.5})
        )
    write_tiny(run, **search).rename(run / "config.yaml")
    return run


@pytest.fixture
def runs(tmp_path):
    genotypes = [random_genotype(np.random.default_rng(seed), nodes=2) for seed in range(3)]
    folders = [search_result(tmp_path, f"search{n}", genotype) for n, genotype in enumerate(genotypes)]
    return [*folders, search_result(tmp_path, "failed", None)]


def call(tmp_path, sources, *more, output="tournament"):
    recipe = write_tiny(tmp_path, **DERIVED_TRAINING)
    line = [*map(str, sources), "--config", str(recipe), "--output", str(tmp_path / output), *more]
    return tournament.main(line)


def test_a_tournament_chooses_and_derive_takes_its_winner(tmp_path, runs, capsys, monkeypatch):
    trained = []
    original = TrainTask.end_epoch

    def end_epoch(task, stop):
        result = original(task, stop)
        if task.state.finished:
            trained.append(task.state.epoch)
        return result

    monkeypatch.setattr(TrainTask, "end_epoch", end_epoch)
    assert call(tmp_path, runs, "--random", "1", "--seed", "7", "--epochs", "1") == 0
    assert trained == [1, 1, 1, 1, 2, 2]
    folder = tmp_path / "tournament"
    content = json.loads((folder / "rounds.json").read_text())
    first, second = content["rounds"]
    assert list(first["results"]) == ["search0", "search1", "search2", "random:7"]
    best = sorted(first["results"], key=lambda name: -first["results"][name]["map"])[:2]
    assert set(second["results"]) == set(best) == set(first["kept"])
    assert [content["winner"]] == second["kept"]
    assert all(
        result["map"] <= second["results"][content["winner"]]["map"] for result in second["results"].values()
    )
    printed = capsys.readouterr()
    assert "failed: skipped, because it has no result" in printed.err
    assert f"winner: {content['winner']}" in printed.out

    winner = Genotype.load(folder / "genotype.json")
    assert winner == Genotype.parse(json.dumps(content["genotype"]), "")
    assert all(path.suffix != ".pt" for path in folder.rglob("*")), "checkpoints of finished trials are gone"
    # Again: nothing is trained, and the result is the same.
    assert call(tmp_path, runs, "--random", "1", "--seed", "7", "--epochs", "1") == 0
    assert len(trained) == 6
    assert json.loads((folder / "rounds.json").read_text()) == content

    line = [str(folder), "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "derived")]
    assert derive.main(line) == 0
    assert Genotype.load(tmp_path / "derived/genotype.json") == winner
    assert json.loads((tmp_path / "derived/rounds.json").read_text()) == content


@pytest.mark.parametrize("fails", [False, True])
def test_the_planted_best_wins_unless_its_training_fails(tmp_path, runs, monkeypatch, fails):
    """With a stand-in for the training: a network is as good as it has parameters."""
    options = DERIVED_TRAINING["model"]["options"]
    genotypes = [random_genotype(np.random.default_rng(seed), nodes=2) for seed in range(3)]
    sizes = [
        count_parameters(build_model("derived", 1, genotype=genotype, **options)) for genotype in genotypes
    ]
    order = [int(place) for place in np.argsort(sizes)]

    def result(trial):
        size = sizes[genotypes.index(trial.genotype)]
        failed = fails and size == max(sizes)
        figures = (
            {"map": None, "rank1": None, "failed": "diverged"} if failed else {"map": size / 1e6, "rank1": 0}
        )
        return {"key": trial.key, **figures, "seconds": 1.0, "parameters": size, "macs": 0}

    monkeypatch.setattr(TrialRunner, "run", lambda runner, trials: list(map(result, trials.values())))
    assert call(tmp_path, runs) == 0
    content = json.loads((tmp_path / "tournament/rounds.json").read_text())
    assert content["winner"] == f"search{order[-2 if fails else -1]}"
    assert [one["epochs"] for one in content["rounds"]] == [1, 2]


def test_a_tournament_whose_trainings_all_diverge_has_no_winner(tmp_path, runs, capsys):
    diverging = [
        "training.learning_rate=1e30",
        "training.gradient_clip=null",
        "losses.classification_weight=1.0",
    ]
    assert call(tmp_path, runs[:2], *diverging, "--epochs", "1") == 1
    results = TrialFile(tmp_path / "tournament").read().values()
    assert all(result["map"] is None and "not finite" in result["failed"] for result in results)
    assert "all trainings failed, search0 with: step" in capsys.readouterr().err
    assert not (tmp_path / "tournament/genotype.json").exists()


@pytest.mark.parametrize(
    ("sources", "more", "message"),
    [
        (["runs/search0"], ["evaluation.split=test"], "networks must not be chosen by the test images"),
        (["runs/search0"], ["task=search"], "must have task: train and model.name: derived"),
        (["runs/search0"], ["--epochs", "0"], "--epochs 0: must be at least 1"),
        (["runs/search0"], ["--random", "-1"], "--random -1: must be at least 0"),
        (["nowhere.json"], [], "nowhere.json: cannot read the genotype"),
        (["runs/failed"], [], "none of these searches has finished"),
        (["training.epochs=1"], [], "expected genotype files or run folders"),
        (["runs/search0"], ["trainin.epochs=1"], "did you mean training"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_status_2(tmp_path, runs, capsys, monkeypatch, sources, more, message):
    monkeypatch.chdir(tmp_path)
    assert call(tmp_path, sources, *more) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "tournament").exists()


def test_random_networks_have_the_operations_of_the_search_and_the_sizes_of_the_found(tmp_path):
    operations = ["none", "skip_connect", "sep_conv_5x5", "max_pool_3x3", "dil_conv_5x5"]
    reid_cell = {**TINY["search"]["reid_cell"], "operations": operations}
    found = random_genotype(np.random.default_rng(5), 2, operations)
    run = search_result(tmp_path, "search", found, search__reid_cell=reid_cell)
    recipe = load_config(write_tiny(tmp_path, **DERIVED_TRAINING))
    entries = work.read_entries([run])
    genotypes = work.add_random(entries, 6, 0, recipe)
    assert list(genotypes) == ["search", *(f"random:{seed}" for seed in range(6))]
    used = {
        edge.operation for g in genotypes.values() for _, cell in g.cells() for node in cell for edge in node
    }
    assert used == set(operations) - {"none"}
    sizes = [
        count_parameters(build_model("derived", 1, **{**recipe.model.options, "genotype": genotype}))
        for genotype in genotypes.values()
    ]
    assert all(abs(size / sizes[0] - 1) < 0.1 for size in sizes)
