"""Trials: their keys, their file, how processes share them, and their genotypes."""

import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest

from autoreid.distributed import StopSignal
from autoreid.errors import DataError, RunError
from autoreid.recipes import load_config
from autoreid.spaces.reid_cell.genotype import random_genotype
from autoreid.trials.runner import TrialRunner
from autoreid.trials.shared_units import Unit, claim, share_units
from autoreid.trials.trial import make_trial
from autoreid.trials.trial_file import TrialFile
from tests.helpers.ranks import ALONE
from tests.helpers.tiny import DERIVED_TRAINING, write_tiny

GENOTYPE = random_genotype(np.random.default_rng(0), nodes=2)


def trial_of(folder, genotype=GENOTYPE, seed=0, epochs=2, **changes):
    return make_trial(load_config(write_tiny(folder, **(DERIVED_TRAINING | changes))), genotype, seed, epochs)


def test_a_key_is_that_of_what_determines_the_result(tmp_path):
    key = trial_of(tmp_path).key
    other = tmp_path / "elsewhere"
    other.mkdir()
    same = [
        trial_of(other),
        trial_of(tmp_path, task_name="another"),
        trial_of(tmp_path, data__workers=2),
        trial_of(tmp_path, search={"order": "second"}),
        trial_of(tmp_path, evaluation__batch_size=3),
    ]
    assert {trial.key for trial in same} == {key}
    different = [
        trial_of(tmp_path, random_genotype(np.random.default_rng(1), nodes=2)),
        trial_of(tmp_path, seed=1),
        trial_of(tmp_path, epochs=1),
        trial_of(tmp_path, losses={"margin": None}),
        trial_of(tmp_path, data__held_out_fraction=0.3),
        trial_of(tmp_path, evaluation__metric="euclidean"),
        trial_of(tmp_path, data__flip=0.1),
    ]
    assert len({key, *(trial.key for trial in different)}) == len(different) + 1


def test_initial_weights_count_by_their_content(tmp_path):
    files = [tmp_path / f"{number}.pt" for number in range(3)]
    for file, content in zip(files, (b"one", b"one", b"two"), strict=True):
        file.write_bytes(content)
    first, same, other = (trial_of(tmp_path, model__weights=str(file)) for file in files)
    before = first.key
    assert before == same.key != other.key
    assert before != trial_of(tmp_path).key
    files[0].write_bytes(b"two")
    os.utime(files[0], ns=(0, 0))
    assert first.key == other.key, "the file was replaced"
    files[0].unlink()
    with pytest.raises(DataError, match=r"model\.weights: .*0\.pt"):
        _ = first.key


def test_a_shorter_training_has_the_whole_schedule(tmp_path):
    schedule = {
        "epochs": 40,
        "schedule": "step",
        "milestones": [20, 30],
        "warmup_epochs": 4,
        "frozen_epochs": 2,
    }
    training = trial_of(tmp_path, epochs=20, training=schedule).config.training
    assert (training.milestones, training.warmup_epochs, training.frozen_epochs) == ((10, 15), 2, 1)
    assert trial_of(tmp_path, epochs=20).config.evaluation.every_epochs == 20
    for epochs, flat in ((20, 5), (1, 0)):
        training = trial_of(
            tmp_path, epochs=epochs, training={"epochs": 40, "flat_epochs": 10}
        ).config.training
        assert training.flat_epochs == flat


def _append(folder, process):
    for number in range(50):
        TrialFile(folder).append({"key": f"{process}-{number}", "text": "x" * 3000})


def test_processes_append_to_one_file(tmp_path):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_append, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 150
    assert {json.loads(line)["key"] for line in lines} == {f"{p}-{n}" for p in range(3) for n in range(50)}


def test_a_torn_line_costs_nothing_but_itself(tmp_path):
    file = TrialFile(tmp_path)
    assert file.read() == {}
    file.append({"key": "a", "map": 0.5})
    with file.path.open("a") as torn:
        torn.write('{"key": "b", "ma')
    file.append({"key": "c", "map": 0.25})
    file.append({"key": "a", "map": 0.75})
    assert {key: result["map"] for key, result in file.read().items()} == {"a": 0.5, "c": 0.25}


def test_a_unit_that_another_process_works_on_is_waited_for(tmp_path):
    done: list[str] = []
    release = claim(tmp_path / "b.lock")

    def work(name):
        done.append(name)
        if name == "c":  # the other process finishes b, or dies before it has
            release.__exit__(None, None, None)

    units = [Unit(name, lambda name=name: name in done, lambda name=name: work(name)) for name in "abc"]
    assert release.__enter__()
    with claim(tmp_path / "b.lock") as mine:
        assert not mine
    assert share_units(units, tmp_path, StopSignal())
    assert done == ["a", "c", "b"]
    assert share_units(units, tmp_path, StopSignal())
    assert len(done) == 3


def test_loader_processes_end_with_their_trial(tmp_path):
    trials = {str(seed): trial_of(tmp_path, seed=seed, epochs=1, data__workers=1) for seed in range(2)}
    runner = TrialRunner.open(tmp_path, trials["0"].config, ALONE, StopSignal())
    results = runner.run(trials)
    assert [result["seed"] for result in results] == [0, 1]
    assert multiprocessing.active_children() == []


def test_a_stop_signal_ends_the_work(tmp_path):
    stop, done = StopSignal(), []

    def work(name):
        if name == "b":
            stop.received = "SIGTERM"
            return
        done.append(name)

    units = [Unit(name, lambda name=name: name in done, lambda name=name: work(name)) for name in "abc"]
    assert not share_units(units, tmp_path, stop)
    assert done == ["a"]


def test_only_a_training_that_diverges_is_a_failed_result(tmp_path, monkeypatch):
    """A full disk would otherwise count as the result of the network for good."""
    trial = trial_of(tmp_path, epochs=1)
    runner = TrialRunner.open(tmp_path, trial.config, ALONE, StopSignal())

    def full(*arguments, **keywords):
        raise RunError("checkpoints/1.pt: cannot write the file: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("autoreid.checkpoint.CheckpointFolder.save", full)
        with pytest.raises(RunError, match="No space left"):
            runner.run({"one": trial})
    assert TrialFile(tmp_path).read() == {}
    diverging = trial_of(tmp_path, epochs=1, training={"epochs": 1, "learning_rate": 1e30})
    (result,) = runner.run({"one": diverging})
    assert result["map"] is None
    assert "finite" in result["failed"] or "NaN" in result["failed"]


def test_results_of_other_images_are_refused(tmp_path):
    config = trial_of(tmp_path).config
    output = tmp_path / "output"
    output.mkdir()
    for _ in range(2):
        TrialRunner.open(output, config, ALONE, StopSignal())
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "people", elsewhere / "people")
    moved = config.model_copy(update={"data": config.data.model_copy(update={"root": elsewhere})})
    TrialRunner.open(output, moved, ALONE, StopSignal())
    image = next((elsewhere / "people" / "bounding_box_train").glob("*.jpg"))
    image.unlink()
    with pytest.raises(DataError, match=r"from other images of this data set \((\d+) then, (\d+) now\)"):
        TrialRunner.open(output, moved, ALONE, StopSignal())
