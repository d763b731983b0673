"""Submitting studies without a cluster: the batch scripts, the shares of the trainings, the table, and --local."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from autoreid import study
from autoreid.reporting.history import read_history
from autoreid.slurm import study_part
from autoreid.slurm.resume import reason_to_requeue
from autoreid.training.task import TrainTask
from tests.helpers.commands import ROOT, run_job_script
from tests.helpers.studies import content_of
from tests.helpers.tiny import DERIVED_TRAINING, write_tiny

RECORDED = Path(__file__).parent / "data" / "sbatch" / "study.sh"
ALL = ["found0", "found1", "random0", "random1", "random2"]

pytestmark = pytest.mark.slow


def line_of(folder, **changes):
    """Write the recipes into a folder, and return the options of a study with 5 trainings of 10 steps each."""
    folder.mkdir(exist_ok=True)
    search = write_tiny(folder, **changes).rename(folder / "search.yaml")
    train = write_tiny(folder, **DERIVED_TRAINING).rename(folder / "train.yaml")
    line = ["--search", str(search), "--train", str(train), "--output", str(folder / "study")]
    return [*line, "--searches", "2", "--random", "3"]


def submit(folder, *line, script="submit_study", here=True, path=None):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder / "nothing")}
    if path is not None:
        environment["PATH"] = path
    return run_job_script(script, *line, folder=folder, environment=environment, here=here)


def trial_lines(folder):
    return (folder / "study/trials.jsonl").read_text().splitlines(keepends=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study by one process."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    assert study.main(line_of(folder)) == 0
    return folder


@pytest.fixture
def searched(whole, tmp_path):
    """A study whose searches have finished, and whose trainings have not begun."""
    folder = tmp_path / "folder"
    folder.mkdir()
    line_of(folder)
    shutil.copytree(whole / "study/runs", folder / "study/runs")
    return folder


def test_a_dry_run_prints_the_recorded_scripts_and_writes_nothing(tmp_path):
    folder = tmp_path / "folder"
    line = line_of(folder)
    before = sorted(folder.rglob("*"))
    options = ["--nodes", "2", "--gpus", "4", "--time", "60", "--array-limit", "2", "--python", "python3"]
    shown = submit(folder, *line, *options, "--gres", "gpu:a100:4", "--dry-run", path="/nowhere")
    assert shown.returncode == 0, shown.stderr
    assert sorted(folder.rglob("*")) == before
    text = shown.stdout.replace(str(folder), "/shared")
    if os.environ.get("AUTOREID_RECORD"):
        RECORDED.write_text(text)
    assert text == RECORDED.read_text()


def test_without_slurm_nothing_is_written(tmp_path):
    refused = submit(tmp_path / "folder", *line_of(tmp_path / "folder"), "--gpus", "0", path="/nowhere")
    assert refused.returncode == 2
    assert "sbatch: command not found" in refused.stderr
    assert not (tmp_path / "folder/study").exists()


def test_an_array_larger_than_the_cluster_allows_is_refused_and_nothing_is_written(tmp_path):
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'MaxArraySize            = 4'\n")
    program.chmod(0o755)
    line = [*line_of(tmp_path / "folder"), "--gpus", "0"]
    refused = submit(tmp_path / "folder", *line, path=str(program.parent))
    assert refused.returncode == 2
    assert "a job array of 5 tasks is too large" in refused.stderr
    assert not (tmp_path / "folder/study").exists()
    shared = submit(tmp_path / "folder", *line, "--trainings-at-once", "4", path=str(program.parent))
    assert "sbatch: command not found" in shared.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainings-at-once", "0"], "--trainings-at-once 0: must be at least 1"),
        (["--random", "0"], "--random 0: must be at least 1"),
        (["trainin.epochs=1"], "did you mean training"),
        (["--train-set", "model.options.chanels=3"], "chanels"),
        (["--tasks", "3"], "batch"),  # 16 images over 3 ranks
    ],
)
def test_errors_are_one_line_and_status_2_before_submission(tmp_path, more, message):
    refused = submit(tmp_path, *line_of(tmp_path / "folder"), "--gpus", "0", *more, path="/nowhere")
    assert refused.returncode == 2
    (complaint,) = refused.stderr.strip().splitlines()
    assert message in complaint
    assert not (tmp_path / "folder/study").exists()


def stages(folder, *more):
    """The stages of a dry run, each with the run folders of its array tasks."""
    shown = submit(folder, *line_of(folder), "--gpus", "0", *more, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    found = {}
    for part in shown.stdout.split("# ---- ")[1:]:
        runs = [line for line in part.splitlines() if line.startswith("runs=(")]
        found[part.split()[0]] = [Path(run.strip("()")).name for line in runs for run in line[5:].split()]
    return found


def test_only_what_has_no_result_is_submitted(whole, searched):
    shares = [f"trainings{share}" for share in range(5)]
    assert stages(searched) == {"train": shares, "table": []}
    assert stages(searched, "--trainings-at-once", "9") == {"train": shares, "table": []}
    assert stages(searched, "--array-limit", "3") == {"train": shares[:3], "table": []}
    # Of three shares, found0 and random1 are the first, found1 and random2 the second.
    lines = [line for line in trial_lines(whole) if json.loads(line)["name"] in ("found0", "random1")]
    (searched / "study/trials.jsonl").write_text("".join(lines))
    assert stages(searched, "--trainings-at-once", "3") == {"train": shares[1:3], "table": []}
    (searched / "study/trials.jsonl").write_text("".join(trial_lines(whole)))
    assert stages(searched) == {"table": []}
    (searched / "study/runs/search1/result.json").unlink()
    # The second search will find another network, for all that its job knows.
    assert stages(searched) == {"search": ["search1"], "train": ["trainings1", "trainings3"], "table": []}


def part(folder, *which):
    return study_part.main([*which, *line_of(folder)])


def test_the_shares_do_each_training_once_and_end_as_one_process(whole, searched, capsys):
    for share in range(2):
        assert part(searched, "--share", str(share), "2") == 0
    assert [json.loads(line)["name"] for line in trial_lines(searched)] == [*ALL[::2], *ALL[1::2]]
    assert part(searched, "--table") == 0
    assert "rank among random" in capsys.readouterr().out
    assert content_of(searched) == content_of(whole)
    rows = json.loads(submit(searched, "study", "--json", script="status").stdout)
    assert [row["run"] for row in rows] == ["search0", "search1", "trainings0", "trainings1"]
    assert [(row["task"], row["state"], row["step"], row["steps"]) for row in rows[2:]] == [
        ("trainings", "finished", 3, 3),
        ("trainings", "finished", 2, 2),
    ]
    refused = submit(searched, "study", script="logs")
    assert refused.returncode == 2
    assert "has 4 runs; name one of them" in refused.stderr


def test_a_requeued_share_continues_where_it_was(whole, searched, monkeypatch):
    original, steps = TrainTask.step, []

    def step(task, stop):
        steps.append(task.state.step)
        if len(steps) == 13:
            os.kill(os.getpid(), signal.SIGUSR2)
        return original(task, stop)

    monkeypatch.setattr(TrainTask, "step", step)
    assert part(searched, "--share", "0", "1") == 0
    run = searched / "study/runs/trainings0"
    events = read_history(run)
    assert [(event.kind, event.step) for event in events] == [("started", 0), ("stopped", 13)]
    assert reason_to_requeue(events, None, 0, 0) == "stopped by SIGUSR2"
    assert len(trial_lines(searched)) == 1
    assert part(searched, "--share", "0", "1") == 0
    events = read_history(run)
    assert [(event.kind, event.step) for event in events[2:]] == [("started", 13), ("finished", 50)]
    assert len(steps) == 50, "steps were done again"
    assert part(searched, "--table") == 0
    assert content_of(searched) == content_of(whole)


def test_the_table_says_what_is_missing(searched, capsys):
    (searched / "study/runs/search1/result.json").unlink()
    assert part(searched, "--share", "0", "1") == 0
    capsys.readouterr()
    assert part(searched, "--table") == 1
    output = capsys.readouterr()
    complaint = output.err.splitlines()[-1]
    assert (
        "2 of 5 trainings have no result: found1, random1; searches that have not finished: search1"
        in complaint
    )
    assert "random2" in output.out
    content = content_of(searched)
    assert content["missing"] == ["found1", "random1"]
    assert [network["name"] for network in content["found"] + content["random"]] == [
        "search0",
        "random0",
        "random2",
    ]


def test_an_error_is_recorded_so_that_the_share_is_not_requeued(searched):
    shutil.rmtree(searched / "people", ignore_errors=True)
    line = [*line_of(searched), "--train-set", "data.synthetic={}"]
    assert study_part.main(["--share", "0", "1", *line]) == 2
    (event,) = read_history(searched / "study/runs/trainings0")
    assert event.kind == "failed"
    assert "people" in event.reason


@pytest.mark.slow
def test_local_gives_what_one_process_gives(whole, tmp_path):
    folder = tmp_path / "folder"
    done = submit(folder, *line_of(folder), "--gpus", "0", "--local", here=False)
    assert done.returncode == 0, done.stderr
    assert content_of(folder) == content_of(whole)
    assert (folder / "study/study.png").read_bytes() == (whole / "study/study.png").read_bytes()
    keys = [sorted(json.loads(line)["key"] for line in trial_lines(place)) for place in (folder, whole)]
    assert keys[0] == keys[1]
