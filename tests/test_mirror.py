"""Mirrors in Weights & Biases and MLflow, read back with their own readers and compared with what the run wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoreid import mirror, train
from autoreid.commands import mirror as command
from autoreid.config import MAY_DIFFER
from autoreid.files import write_atomically
from autoreid.mirrors import build_mirror
from autoreid.reporting.history import record
from autoreid.reporting.run_folder import flatten
from tests.helpers import DRAWN_PEOPLE
from tests.helpers.ranks import free_port
from tests.helpers.runs import run_processes, run_train, run_train_with_signal
from tests.helpers.tiny import OSNET_TRAINING, tiny_config, write_tiny

TRACKERS = ["mlflow", "wandb"]


@cache
def empty_database() -> Path:
    """An MLflow database with all tables, which take seconds to create."""
    from mlflow import MlflowClient

    folder = Path(tempfile.mkdtemp(dir=os.environ[DRAWN_PEOPLE]))
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


class MlflowStore:
    """An MLflow database, read with MLflow's client."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("mlflow")
        shutil.copy(empty_database(), folder / "mlflow.db")
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        self.arguments = ("--to", "mlflow", "--store", self.uri)

    def ids(self) -> list[str]:
        from mlflow import MlflowClient

        self.client = MlflowClient(self.uri)
        experiment = self.client.get_experiment_by_name("autoreid")
        return [run.info.run_id for run in self.client.search_runs([experiment.experiment_id])]

    def read(self, run_id: str) -> SimpleNamespace:
        run = self.client.get_run(run_id)
        points = [
            (metric.step, name, metric.value)
            for name in run.data.metrics
            for metric in self.client.get_metric_history(run_id, name)
        ]
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        assert folder.is_relative_to(self.folder)
        tags = run.data.tags
        texts = {key.removeprefix("result."): tags[key] for key in tags if key.startswith("result.")}
        numbers = {
            name.removeprefix("result/"): value for _, name, value in points if name.startswith("result/")
        }
        return SimpleNamespace(
            name=run.info.run_name,
            points=[point for point in points if not point[1].startswith("result/")],
            result=numbers | {key: _value(text) for key, text in texts.items()},
            config={key: _value(text) for key, text in run.data.params.items()},
            environment={
                key.removeprefix("environment."): tags[key] for key in tags if key.startswith("environment.")
            },
            pictures={path.read_bytes() for path in folder.glob("genotypes/*.png")},
            is_finished=run.info.status == "FINISHED",
        )


class WandbStore:
    """A folder of W&B's offline files."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("wandb", reason="wandb, which is no part of the extra dev, is not installed")
        self.folder, self.arguments = folder, ("--to", "wandb", "--store", str(folder))

    def ids(self) -> list[str]:
        from tests.helpers.wandb_file import read_runs

        self.runs = read_runs(self.folder)
        return [*self.runs]

    def read(self, run_id: str) -> SimpleNamespace:
        parts = self.runs[run_id]
        rows = [row for part in parts for row in part["history"]]
        assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
        pictures = {
            (part["folder"] / value).read_bytes()
            for part in parts
            for row in part["history"]
            for name, value in row.items()
            if name.startswith("genotype/") and name.endswith("/path")
        }
        points = [
            (row["_step"], name, value)
            for row in rows
            for name, value in row.items()
            if not name.startswith(("_", "genotype/"))
        ]
        summary, config = parts[-1]["summary"], parts[-1]["config"]
        result = {key.removeprefix("result/"): summary[key] for key in summary if key.startswith("result/")}
        environment = {key: _text(value) for key, value in config["environment"].items()}
        return SimpleNamespace(
            name=parts[-1]["name"],
            points=points,
            result=result,
            config=dict(flatten(config, "")),
            environment=environment,
            pictures=pictures,
            is_finished=bool(result),
        )


STORES = {"mlflow": MlflowStore, "wandb": WandbStore}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.fixture(params=TRACKERS)
def store(request, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    return STORES[request.param](folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a finished search, `runs/tiny`, and a finished training, `runs/trained`."""
    folder = tmp_path_factory.mktemp("finished")
    for changes in ({}, OSNET_TRAINING | {"task_name": "trained"}):
        tiny_config(folder, **changes)
        assert train.main(["--config", str(folder / "tiny.yaml")]) == 0
    return folder


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """A copy of the run folders."""
    return shutil.copytree(finished / "runs", tmp_path / "runs")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def points_of(records: list[dict]) -> list[tuple[int, str, float]]:
    return sorted(
        (record["step"], name, value)
        for record in records
        for name, value in record.items()
        if name != "step"
    )


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("autoreid.mirrors")]


def write_lines(run: Path, records: list[dict]) -> None:
    write_atomically(run / "metrics.jsonl", "".join(json.dumps(one) + "\n" for one in records).encode())


@pytest.mark.slow
def test_a_mirror_has_every_value_once(runs, finished, store):
    for _ in range(2):  # the second call adds nothing
        assert mirror.main([str(runs), *store.arguments]) == 0
    found = {run.name: run for run in map(store.read, store.ids())}
    assert {*found} == {"tiny", "trained"}
    for name, run in found.items():
        folder = runs / name
        assert sorted(run.points) == points_of(lines(folder))
        assert run.is_finished
        result = json.loads((folder / "result.json").read_text())
        assert run.result == dict(flatten(result, ""))
        environment = json.loads((folder / "environment.json").read_text())
        assert run.environment == {key: _text(value) for key, value in environment.items()}
        assert run.config["task_name"] == name
        assert run.config["training.learning_rate"] == 0.05
        assert run.config["data.synthetic.people.train_identities"] == 12
    drawn = {path.read_bytes() for path in (finished / "genotypes/tiny").glob("*.png")}
    assert found["tiny"].pictures == drawn
    assert len(drawn) == 4


@pytest.mark.parametrize(
    ("output_dir", "genotype_dir"),
    [
        ("runs", "drawn"),
        ("some/runs", "drawn"),
        ("{start}/runs", "{start}/drawn"),
        ("{start}/runs", "../drawn"),
    ],
)
def test_pictures_are_found_from_another_folder(
    finished, tmp_path, monkeypatch, caplog, output_dir, genotype_dir
):
    store, output_dir = MlflowStore(tmp_path), output_dir.format(start=tmp_path)
    shutil.copytree(finished / "runs", tmp_path / output_dir)
    shutil.copytree(finished / "genotypes", tmp_path / "drawn")
    config = tmp_path / output_dir / "tiny/config.yaml"
    text = config.read_text().replace(str(finished / "runs"), output_dir)
    config.write_text(text.replace(str(finished / "genotypes"), genotype_dir.format(start=tmp_path)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert mirror.main([str(".." / Path(output_dir) / "tiny"), *store.arguments]) == 0
    assert len(store.read(*store.ids()).pictures) == 4
    assert warnings_in(caplog) == []


def test_missing_pictures_are_told_once(runs, finished, tmp_path, caplog):
    store, config = MlflowStore(tmp_path), runs / "tiny/config.yaml"
    config.write_text(config.read_text().replace(str(finished / "genotypes"), "nowhere"))
    for _ in range(2):
        assert mirror.main([str(runs), *store.arguments]) == 0
    (warning,) = warnings_in(caplog)
    assert f"{runs}/tiny: the pictures of its genotypes are not copied" in warning
    assert warning.endswith("nowhere/tiny")


def test_updates_continue_the_same_run(runs, store):
    run, every = runs / "trained", lines(runs / "trained")
    result = (run / "result.json").read_bytes()
    (run / "result.json").unlink()
    write_lines(run, every[:1])
    assert mirror.main([str(run), *store.arguments]) == 0
    (first,) = store.ids()
    assert sorted(store.read(first).points) == points_of(every[:1])
    assert not store.read(first).is_finished
    write_lines(run, every)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 18, "lo')  # the run is writing, or was killed
    assert mirror.main([str(run), *store.arguments]) == 0
    (run / "result.json").write_bytes(result)
    assert mirror.main([str(run), *store.arguments]) == 0
    assert store.ids() == [first]
    assert sorted(store.read(first).points) == points_of(every)
    assert store.read(first).is_finished


def test_an_epoch_that_is_reported_twice_is_mirrored_once(runs, store):
    run, (first, second) = runs / "trained", lines(runs / "trained")
    write_lines(run, [first, first | {"data_wait": 0.5}, second])
    assert mirror.main([str(run), *store.arguments]) == 0
    assert sorted(store.read(*store.ids()).points) == points_of([first, second])


def test_epochs_computed_again_with_equal_values_stay(runs, store, caplog):
    run, (first, second) = runs / "trained", lines(runs / "trained")
    assert mirror.main([str(run), *store.arguments]) == 0
    write_lines(run, [first])  # resumed from an earlier checkpoint
    assert mirror.main([str(run), *store.arguments]) == 0
    write_lines(run, [first, second | {"images_per_second": 1.0}])
    assert mirror.main([str(run), *store.arguments]) == 0
    assert sorted(store.read(*store.ids()).points) == points_of([first, second])
    assert warnings_in(caplog) == []


def test_epochs_computed_again_with_other_values_are_mirrored_anew(runs, store, caplog):
    run, (first, second) = runs / "trained", lines(runs / "trained")
    assert mirror.main([str(run), *store.arguments]) == 0
    (old,) = store.ids()
    again = [first, second | {"loss": 0.25}]
    write_lines(run, again)
    for _ in range(2):
        assert mirror.main([str(run), *store.arguments]) == 0
    (warning,) = warnings_in(caplog)
    assert f"the run {old} there can be deleted" in warning
    (new,) = {*store.ids()} - {old}
    assert sorted(store.read(new).points) == points_of(again)
    assert sorted(store.read(old).points) == points_of([first, second])


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_has_one_id(tmp_path, store):
    path, run = write_tiny(tmp_path), tmp_path / "runs/tiny"
    assert run_processes(run_train_with_signal, path, 4, signal.SIGTERM) == [0]
    assert mirror.main([str(run), *store.arguments]) == 0
    assert len(lines(run)) == 1
    assert run_processes(run_train, path) == [0]
    assert mirror.main([str(run), *store.arguments]) == 0
    assert sorted(store.read(*store.ids()).points) == points_of(lines(run))
    assert len(lines(run)) == 2


def test_an_update_that_was_interrupted_adds_nothing_twice(runs, tmp_path, monkeypatch, capsys):
    store = MlflowStore(tmp_path)
    from mlflow import MlflowClient

    original, run = MlflowClient.log_batch, runs / "trained"

    def fails_after_writing(self, run_id, metrics=(), **others):
        original(self, run_id, metrics=metrics[:9], **others)
        if metrics:
            raise OSError("the disk is full")

    monkeypatch.setattr(MlflowClient, "log_batch", fails_after_writing)
    capsys.readouterr()  # MLflow reports the tables of the first database
    assert mirror.main([str(run), *store.arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"autoreid: {run}: cannot write to mlflow {store.uri} autoreid: the disk is full"
    monkeypatch.undo()
    assert mirror.main([str(run), *store.arguments]) == 0
    assert sorted(store.read(*store.ids()).points) == points_of(lines(run))


def test_a_database_whose_creation_is_interrupted_can_be_created_again(runs, tmp_path, monkeypatch):
    store, run = MlflowStore(tmp_path), runs / "trained"
    from mlflow import MlflowClient

    database, original = tmp_path / "mlflow.db", MlflowClient.search_experiments
    database.unlink()

    def interrupted(self):
        original(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "search_experiments", interrupted)
    assert mirror.main([str(run), *store.arguments]) == 130
    assert not [*tmp_path.glob("*mlflow.db*")]

    def overtaken(self):
        original(self)
        shutil.copy(empty_database(), database)  # by another process

    monkeypatch.setattr(MlflowClient, "search_experiments", overtaken)
    assert mirror.main([str(run), *store.arguments]) == 0
    assert sorted(store.read(*store.ids()).points) == points_of(lines(run))
    assert [*tmp_path.glob("*mlflow.db*")] == [database]


def test_parameters_that_may_change_when_a_run_resumes_keep_their_first_values(runs, tmp_path):
    assert "data.workers" in MAY_DIFFER
    store, run = MlflowStore(tmp_path), runs / "trained"
    every, config = lines(run), run / "config.yaml"
    write_lines(run, every[:1])
    assert mirror.main([str(run), *store.arguments]) == 0
    assert "workers: 0" in config.read_text()
    config.write_text(config.read_text().replace("workers: 0", "workers: 2"))
    write_lines(run, every)
    assert mirror.main([str(run), *store.arguments]) == 0
    assert store.read(*store.ids()).config["data.workers"] == 0


def test_follow_ends_with_the_runs_and_says_an_error_once(runs, store, monkeypatch, capsys):
    run, every = runs / "trained", lines(runs / "trained")
    result, history = (run / "result.json").read_bytes(), (run / "history.jsonl").read_bytes()
    (run / "result.json").unlink()
    (run / "history.jsonl").unlink()
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        match len(sleeps):
            case 2:
                record(run, "started", 0)
                write_lines(run, every[:1])
            case 3:
                write_lines(run, every)
                (run / "result.json").write_bytes(result)
                (run / "history.jsonl").write_bytes(history)

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))
    assert mirror.main([str(run), *store.arguments, "--follow", "7"]) == 0
    assert sleeps == [7.0] * 3
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert "not the folder of a run that has started" in line
    assert line.endswith("trying again every 7 seconds")
    assert printed.out.count("1 epoch written") == 2
    assert sorted(store.read(*store.ids()).points) == points_of(every)


def test_one_broken_run_does_not_keep_others_from_the_mirror(runs, store, capsys):
    (runs / "tiny/config.yaml").write_text("task: dance\n")
    assert mirror.main([str(runs), *store.arguments]) == 2
    assert "tiny/config.yaml" in capsys.readouterr().err
    assert [store.read(one).name for one in store.ids()] == ["trained"]


def test_nothing_leaves_the_machine(runs, store, monkeypatch):
    def connect(self, address):
        raise AssertionError(f"connects to {address}")

    connect_local = socket.socket.connect
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(
        socket.socket,
        "connect",
        lambda self, address: (connect_local if self.family == socket.AF_UNIX else connect)(self, address),
    )
    assert mirror.main([str(runs / "trained"), *store.arguments]) == 0
    assert len(store.ids()) == 1


def test_two_processes_do_not_mirror_a_run_at_once(runs, tmp_path):
    pytest.importorskip("mlflow")
    import fcntl

    with (runs / "trained/mirrors.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert mirror.main([str(runs / "trained"), *MlflowStore(tmp_path).arguments]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{runs}/nowhere", "--to", "mlflow"), "nowhere: not the folder of a run that has started"),
        (("{runs}", "--to", "mlflow", "--online"), "--online is for --to wandb"),
        (("{runs}", "--to", "mlflow", "--follow", "0"), "--follow 0: must be a finite number of at least 1"),
        (("{runs}", "--to", "mlflow", "--follow", "inf"), "--follow inf: must be a finite number"),
        (("{runs}", "--to", "wandb", "--store", "http://host"), "--store http://host: must be a folder"),
    ],
)
def test_mistakes_are_named(runs, tmp_path, arguments, message, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    assert mirror.main([one.format(runs=runs) for one in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_server_that_cannot_be_reached_is_told_in_one_line(runs, monkeypatch, capfd):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    run, server = runs / "trained", f"http://127.0.0.1:{free_port()}"
    assert mirror.main([str(run), "--to", "mlflow", "--store", server]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"autoreid: {run}: cannot write to mlflow {server} autoreid: ")


def test_paths_may_begin_with_the_home_folder(runs, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(runs.parent))
    assert mirror.main(["~/runs/trained", "--to", "wandb", "--store=~/store"]) == 0
    assert [*(runs.parent / "store/wandb").glob("offline-run-*")]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_package_is_named(runs, tracker, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, tracker, None)
    assert mirror.main([str(runs), "--to", tracker]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"pip install 'autoreid[{tracker}]'")


def test_a_damaged_progress_file_is_an_error(runs, tmp_path, capsys):
    store = MlflowStore(tmp_path)
    (runs / "trained/mirrors.json").write_text('{"mlflow": {"rows": 3}}')
    assert mirror.main([str(runs / "trained"), *store.arguments]) == 2
    assert "delete the file to mirror the run anew" in capsys.readouterr().err


def test_each_store_and_project_has_its_own_progress(tmp_path):
    pytest.importorskip("mlflow")
    choices = [("a", "sqlite:///one.db"), ("b", "sqlite:///one.db"), ("a", "sqlite:///two.db")]
    destinations = {
        build_mirror("mlflow", project, uri, online=False).destination for project, uri in choices
    }
    assert len(destinations) == 3
