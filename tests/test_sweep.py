"""Sweeps without a cluster: the checks before submission, the job array, the table, and TensorBoard's HParams."""

from __future__ import annotations

import csv
import itertools
import json
import os
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml

from autoreid import train
from autoreid.commands import train as work
from autoreid.data.training_data import generate_people
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.reporting.board import Board
from autoreid.reporting.history import read_history, record
from autoreid.slurm import submit as submission
from autoreid.sweeps.sweep import Sweep, read_sweep
from tests.helpers.commands import run_job_script
from tests.helpers.hparams import read_hparams
from tests.helpers.tiny import OSNET_TRAINING, write_tiny

RATE, RATES = "training.learning_rate", [0.01, 0.05]
SWEEP = ["--sweep", "seed=0..2", "--sweep", f"{RATE}=0.01,5e-2"]
NAMES = [f"learning_rate-{rate}__seed-{seed}" for rate in RATES for seed in range(3)]


def call(folder, script, *line, path=None):
    """Run a command of jobs/ where no Slurm is installed, unless `path` has some."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    environment |= {"XDG_CONFIG_HOME": str(folder / "nothing"), "PATH": path or "/usr/bin:/bin"}
    return run_job_script(script, *line, folder=folder, environment=environment)


@pytest.fixture
def recipe(tmp_path):
    """A training whose data exist."""
    path = write_tiny(tmp_path, **OSNET_TRAINING, training__epochs=1)
    generate_people(load_config(path).data)
    return path


def contents(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.fixture
def slurm(tmp_path_factory):
    """A folder with fakes of Slurm's commands: sbatch accepts all jobs, and squeue shows the content of `queue`."""
    folder = tmp_path_factory.mktemp("slurm")
    fakes = {
        "sbatch": f"cp $1 {folder}/script; echo Submitted batch job 12",
        "squeue": f"echo called >> {folder}/calls; cat {folder}/queue",
        "sacct": "exit 1",
        "scontrol": "exit 1",
    }
    for name, text in fakes.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    return folder


def submit(folder, slurm, recipe, *line, checked=False):
    """Submit trainings; their networks are only built if they are to be checked, because that takes a while."""
    path = f"{slurm}:/usr/bin:/bin"
    with nullcontext() if checked else mock.patch.object(work, "check"):
        return call(folder, "submit_train", "--gpus", "0", "--config", recipe, *line, path=path)


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        (
            ["training.epochs=3,0"],
            ["--sweep training.epochs=0: ", "training.epochs = 0", "greater than or equal to 1"],
        ),
        (["training.epohs=3"], ["--sweep training.epohs=3: ", "unknown key; did you mean training.epochs?"]),
        (
            ["data.batch_size=16,18"],
            ["--sweep data.batch_size=18: ", "not a multiple of data.images_per_identity (4)"],
        ),
        (["model.name=osnet_x0_25,osnet_x9"], ["--sweep model.name=osnet_x9: ", "osnet_x0_5"]),
        (["model.options={},{widht: 2}"], ['--sweep model.options={"widht": 2}: ', "widht"]),
        (
            ["data.sources=[people],[market1501]"],
            ['--sweep data.sources=["market1501"]: ', "/market1501"],
        ),
        (["seed=0,1", "data.batch_size=16,20"], ["--sweep data.batch_size=20, seed=0: ", "multiple of 8"]),
        (["seed=1,0..2"], ["--sweep: seed=1 and seed=1 are the same run; remove one"]),
        ([f"{RATE}=0.1,1e-1"], [f"--sweep: {RATE}=0.1 and {RATE}=0.1 are the same run"]),
        (["seed=1", "losses.normalise=true,on"], ["are the same run"]),
        (["task=train,search"], ["--sweep task: a sweep has runs of one task; sweep another key"]),
        (["seed=3..1"], ["--sweep seed: 3..1: the first number must not exceed the last; expected 1..3"]),
    ],
)
def test_a_wrong_sweep_is_one_line_and_status_2_and_creates_nothing(tmp_path, recipe, slurm, line, messages):
    before = contents(tmp_path)
    sweeps = [part for one in line for part in ("--sweep", one)]
    refused = submit(tmp_path, slurm, recipe, "--tasks", "2", *sweeps, checked=True)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    (complaint,) = refused.stderr.strip().splitlines()
    assert [message for message in messages if message not in complaint] == [], complaint
    assert contents(tmp_path) == before
    assert not (slurm / "script").exists()


def test_a_bad_value_is_found_before_data_are_generated(tmp_path, slurm):
    recipe = write_tiny(tmp_path, **OSNET_TRAINING)
    refused = submit(tmp_path, slurm, recipe, "--sweep", "seed=0..3,-1")
    assert "--sweep seed=-1: " in refused.stderr
    assert contents(tmp_path) == [Path("tiny.yaml")]


@pytest.mark.parametrize("script", ["submit_study", "submit_pipeline", "submit_evaluate"])
def test_other_commands_say_why_they_have_no_sweeps(tmp_path, script):
    refused = call(tmp_path, script, "--sweep", "seed=0..4")
    assert refused.returncode == 2
    (complaint,) = refused.stderr.splitlines()
    assert "--sweep: not for this command: " in complaint
    both = call(tmp_path, "submit_train", "--config", "x", "--seeds", "0", "7", "--sweep", "data.flip=0,1")
    assert "--seeds cannot be combined with --sweep; add --sweep seed=0,7" in both.stderr


def test_a_sweep_is_one_job_array_with_a_folder_for_each_run(tmp_path, recipe, slurm):
    done = submit(tmp_path, slurm, recipe, *SWEEP, "--array-limit", "2")
    assert done.returncode == 0, done.stderr
    script = (slurm / "script").read_text()
    assert "#SBATCH --array=0-5%2\n" in script
    assert "#SBATCH --job-name=tiny\n" in script
    sweep = tmp_path / "runs/tiny"
    assert f"runs=({' '.join(str(sweep / name) for name in NAMES)})" in script
    for (rate, seed), (place, name) in zip(itertools.product(RATES, range(3)), enumerate(NAMES), strict=True):
        (event,) = read_history(sweep / name)
        assert (event.kind, event.job) == ("submitted", f"12_{place}")
        config = load_config(sweep / name / "slurm/config.yaml")
        assert (config.training.learning_rate, config.seed) == (rate, seed)
        assert (config.output_dir, config.task_name) == (sweep, name)
        assert config.genotype_dir == tmp_path / "genotypes/tiny"


def test_an_array_larger_than_the_cluster_allows_is_refused_before_files_are_written(tmp_path, recipe, slurm):
    (slurm / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 5'\n")
    before = contents(tmp_path)
    for line in (SWEEP, ["--seeds", *map(str, range(6))], [*SWEEP, "--dry-run"]):
        refused = submit(tmp_path, slurm, recipe, *line, checked=True)
        assert refused.returncode == 2
        (message,) = refused.stderr.splitlines()
        assert message.startswith("autoreid: a job array of 6 tasks is too large for this cluster")
    assert contents(tmp_path) == before
    assert not (slurm / "script").exists()
    assert submit(tmp_path, slurm, recipe, "--seeds", *map(str, range(5))).returncode == 0


def test_no_job_is_submitted_twice_and_slurm_is_asked_once(tmp_path, recipe, slurm):
    assert submit(tmp_path, slurm, recipe, *SWEEP).returncode == 0
    (slurm / "queue").write_text("12_4|RUNNING|n1|1:00\n12_5|PENDING|(Priority)|UNLIMITED\n")
    (slurm / "calls").unlink(missing_ok=True)
    refused = submit(tmp_path, slurm, recipe, *SWEEP)
    assert refused.returncode == 2
    assert f"{NAMES[4]}: job 12_4 of this run is still RUNNING" in refused.stderr
    assert (slurm / "calls").read_text() == "called\n"
    others = submit(tmp_path, slurm, recipe, "--sweep", "seed=0", "--sweep", f"{RATE}=0.01,0.05")
    assert others.returncode == 0, others.stderr
    (slurm / "calls").unlink()
    shown = call(tmp_path, "sweep", "runs/tiny", "--json", path=f"{slurm}:/usr/bin:/bin")
    states = {row["run"]: row["state"] for row in json.loads(shown.stdout)["runs"]}
    assert (states[NAMES[4]], states[NAMES[5]]) == ("RUNNING", "PENDING")
    assert (slurm / "calls").read_text() == "called\n"
    rows = json.loads(call(tmp_path, "status", "--json", path=f"{slurm}:/usr/bin:/bin").stdout)
    assert {row["run"] for row in rows} == {f"tiny/{name}" for name in NAMES}
    for name in ("tiny", "runs/tiny"):
        assert len(json.loads(call(tmp_path, "status", name, "--json").stdout)) == len(NAMES)


def finish(folder, value, seconds, **more):
    """Write what a finished run leaves behind."""
    (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
    result = {"map": value, "cmc": {"1": value / 2}, "seconds": seconds, "epochs": 1, **more}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "progress.json").write_text(json.dumps({"epoch": 1, "epochs": 1}))
    record(folder, "started", 0)
    record(folder, "finished", 6)


@pytest.fixture
def half_done(tmp_path, recipe, slurm):
    """The folder of a sweep of which 4 runs have finished, one has failed and one has begun."""
    assert submit(tmp_path, slurm, recipe, *SWEEP).returncode == 0
    sweep = tmp_path / "runs/tiny"
    for name, value in zip(NAMES, (0.5, 0.6, 0.4, 0.8), strict=False):
        finish(sweep / name, value, 10.0)
        with Board(sweep / name / "tensorboard") as board:
            board.scalars({"epoch/map": value, "epoch/rank1": value / 2, "epoch/loss": 3.0}, 6)
    record(sweep / NAMES[4], "failed", reason="the gradient is not finite")
    record(sweep / NAMES[5], "started", 0)
    lines = [{"epoch": 1, "map": 0.1, "rank1": 0.05}, {"epoch": 2, "loss": 1.0}]
    (sweep / NAMES[5] / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"ep'
    )
    return sweep


def test_the_table_has_every_run_and_means_over_seeds(tmp_path, half_done):
    shown = call(tmp_path, "sweep", "runs/tiny", "--json")
    assert shown.returncode == 0, shown.stderr
    content = json.loads(shown.stdout)
    assert [row["run"] for row in content["runs"]] == NAMES
    assert [row["map"] for row in content["runs"]] == [0.5, 0.6, 0.4, 0.8, None, 0.1]
    assert [row["state"] for row in content["runs"]] == ["finished"] * 4 + ["failed", "lost"]
    assert content["runs"][4]["reason"] == "the gradient is not finite"
    low, high = content["means"]
    assert (low["values"], low["runs"], low["finished"]) == ({RATE: 0.01}, 3, 3)
    assert low["map"] == pytest.approx(np.mean([0.5, 0.6, 0.4]))
    assert low["map_error"] == pytest.approx(np.std([0.5, 0.6, 0.4], ddof=1) / np.sqrt(3))
    assert low["rank1_error"] == pytest.approx(low["map_error"] / 2)
    assert (high["finished"], high["map"], high["map_error"]) == (1, 0.8, None)
    text = call(tmp_path, "sweep", "runs/tiny").stdout
    assert "0.01                    3 of 3  50.0 ± 5.8 %  25.0 ± 2.9 %  0:00:10" in text
    assert "0.05                    1 of 3  80.0 %" in text
    assert "finished: 4 of 6 runs, 0:00:40 in total" in text
    assert "measured on the test images: to choose a value" in text
    markdown = (half_done / "table.md").read_text()
    assert "| 0.05 | 1 | failed |  |  |  |  |" in markdown
    assert "| 0.01 | 3 of 3 | 50.0 ± 5.8 % | 25.0 ± 2.9 % | 0:00:10 |" in markdown
    with (half_done / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["map"] for line in lines] == ["0.5", "0.6", "0.4", "0.8", "", "0.1"]
    assert [(line[RATE], line["seed"], line["run"]) for line in lines][4] == ("0.05", "1", NAMES[4])


def test_tensorboard_compares_the_runs(tmp_path, half_done):
    columns, rows = read_hparams(half_done)
    assert columns == {RATE: ("DATA_TYPE_FLOAT64", RATES), "seed": ("DATA_TYPE_FLOAT64", [0, 1, 2])}
    assert list(rows) == NAMES
    assert {row["status"] for row in rows.values()} == {"STATUS_UNKNOWN"}
    for _ in range(2):  # nothing changes the second time
        assert call(tmp_path, "sweep", "runs/tiny").returncode == 0
        _, rows = read_hparams(half_done)
        assert rows[NAMES[3]] == {
            "hparams": {RATE: 0.05, "seed": 0},
            "metrics": {"mAP": pytest.approx(0.8), "rank-1": pytest.approx(0.4), "loss": 3.0},
            "status": "STATUS_SUCCESS",
        }
        assert rows[NAMES[4]] == {
            "hparams": {RATE: 0.05, "seed": 1},
            "metrics": {},
            "status": "STATUS_UNKNOWN",
        }


def test_tensorboard_shows_words_lists_and_switches(tmp_path, recipe, slurm):
    sweeps = [
        "losses.normalise=true,false",
        "training.milestones=[1],[1,2]",
        "model.name=osnet_x0_25,resnet50",
    ]
    line = [part for sweep in sweeps for part in ("--sweep", sweep)]
    assert submit(tmp_path, slurm, recipe, *line).returncode == 0
    columns, rows = read_hparams(tmp_path / "runs/tiny")
    assert columns == {
        "losses.normalise": ("DATA_TYPE_BOOL", [True, False]),
        "model.name": ("DATA_TYPE_STRING", ["osnet_x0_25", "resnet50"]),
        "training.milestones": ("DATA_TYPE_STRING", ["[1]", "[1, 2]"]),
    }
    shown = {tuple(row["hparams"][key] for key in columns) for row in rows.values()}
    assert shown == set(itertools.product(*(values for _, values in columns.values())))


def test_tensorboard_shows_values_of_one_type_if_a_value_of_another_is_added(tmp_path, recipe, slurm):
    def margins():
        columns, rows = read_hparams(tmp_path / "runs/tiny")
        assert columns.keys() == {"losses.margin"}
        return columns["losses.margin"], [row["hparams"]["losses.margin"] for row in rows.values()]

    assert submit(tmp_path, slurm, recipe, "--sweep", "losses.margin=0.2,0.3").returncode == 0
    assert margins() == (("DATA_TYPE_FLOAT64", [0.2, 0.3]), [0.2, 0.3])
    started = tmp_path / "runs/tiny/margin-0.2/events.out.tfevents.hparams"
    before = started.stat().st_mtime_ns
    assert submit(tmp_path, slurm, recipe, "--sweep", "losses.margin=0.4").returncode == 0
    assert started.stat().st_mtime_ns == before, "nothing has changed for this run"
    assert submit(tmp_path, slurm, recipe, "--sweep", "losses.margin=null").returncode == 0
    texts = ["0.2", "0.3", "0.4", "null"]
    assert margins() == (("DATA_TYPE_STRING", texts), texts)
    started.write_bytes(started.read_bytes()[:-9])
    assert call(tmp_path, "sweep", "runs/tiny").returncode == 0
    assert margins() == (("DATA_TYPE_STRING", texts), texts)


def test_the_same_command_submits_what_has_no_result_and_more_values_are_added(
    tmp_path, half_done, recipe, slurm
):
    def submitted():
        line = next(line for line in (slurm / "script").read_text().splitlines() if line.startswith("runs=("))
        return [Path(run).name for run in line[6:-1].split()]

    assert submit(tmp_path, slurm, recipe, *SWEEP).returncode == 0
    assert submitted() == NAMES[4:]
    (slurm / "script").unlink()
    more = submit(tmp_path, slurm, recipe, "--sweep", "seed=0..3", "--sweep", f"{RATE}=0.010")
    assert more.returncode == 0, more.stderr
    assert submitted() == ["learning_rate-0.01__seed-3"]
    rows = json.loads(call(tmp_path, "sweep", "runs/tiny", "--json").stdout)["runs"]
    assert [row["run"] for row in rows] == [*NAMES, "learning_rate-0.01__seed-3"]
    (slurm / "script").unlink()
    done = submit(tmp_path, slurm, recipe, "--sweep", "seed=0,1", "--sweep", f"{RATE}=0.01")
    assert done.returncode == 0
    assert "0 of them to submit" in done.stderr
    assert not (slurm / "script").exists()
    (half_done / "sweep.json").unlink()
    assert submit(tmp_path, slurm, recipe, "--sweep", "seed=0,1", "--sweep", f"{RATE}=0.01").returncode == 0
    rows = json.loads(call(tmp_path, "sweep", "runs/tiny", "--json").stdout)["runs"]
    assert [row["run"] for row in rows] == NAMES[:2]


def test_calls_at_the_same_time_keep_the_runs_of_each_other(tmp_path, recipe):
    config = load_config(recipe)
    first, second, other = (
        Sweep(tmp_path / "rates", config, (key,), {f"{key}-{value}": {key: value}}).added_to_stored()
        for key, value in (("seed", 0), ("seed", 1), ("task_number", 2))
    )
    first.save()
    second.save()
    assert read_sweep(tmp_path / "rates").runs == {"seed-0": {"seed": 0}, "seed-1": {"seed": 1}}
    with pytest.raises(ConfigError, match="has a sweep of seed"):
        other.save()


def test_a_local_sweep_whose_folder_cannot_be_created_says_so(tmp_path, recipe, slurm):
    (tmp_path / "runs").write_text("")
    refused = submit(tmp_path, slurm, recipe, "--local", *SWEEP)
    assert refused.returncode == 2
    assert "runs/tiny: cannot create the folder" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--sweep", "seed=0..2"], "has a sweep of training.learning_rate and seed; give another task_name"),
        (
            [*SWEEP, "training.momentum=0.5"],
            "has a sweep of another config: training.momentum was 0.9, is now 0.5",
        ),
        (["task_name=tiny"], "is the folder of a sweep; give another task_name"),
    ],
)
def test_a_folder_has_one_sweep(tmp_path, half_done, recipe, slurm, line, message):
    before = contents(tmp_path)
    refused = submit(tmp_path, slurm, recipe, *line)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert contents(tmp_path) == before


def test_other_folders_are_no_sweeps(tmp_path, recipe, slurm):
    assert submit(tmp_path, slurm, recipe).returncode == 0
    run = tmp_path / "runs/tiny"
    refused = submit(tmp_path, slurm, recipe, *SWEEP)
    assert refused.returncode == 2
    assert "runs/tiny is the folder of a single run; give another task_name" in refused.stderr
    missing = call(tmp_path, "sweep", "runs/tiny")
    assert missing.returncode == 2
    assert (
        "sweep.json: cannot read the sweep: No such file or directory; expected the folder" in missing.stderr
    )
    (run / "sweep.json").write_text("{")
    damaged = call(tmp_path, "sweep", "runs/tiny")
    assert damaged.returncode == 2
    assert "sweep.json: damaged" in damaged.stderr


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path, slurm):
    recipe = write_tiny(tmp_path, **OSNET_TRAINING)
    before = contents(tmp_path)
    shown = submit(tmp_path, slurm, recipe, *SWEEP, "--dry-run", "--array-limit", "3", checked=True)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("#!/bin/bash\n")
    assert "#SBATCH --array=0-5%3\n" in shown.stdout
    assert shown.stderr.count("data not checked") == 1
    assert contents(tmp_path) == before


def test_locally_a_failed_run_does_not_hold_up_the_next(tmp_path, recipe, slurm, monkeypatch):
    """The trainings run in this process, one after the other."""
    monkeypatch.setattr(
        submission, "call_locally", lambda command, ranks: train.main(list(command.arguments))
    )
    tree = yaml.safe_load(recipe.read_text())
    tree["training"]["final_learning_rate"] = 0.0
    recipe.write_text(yaml.safe_dump(tree))
    done = submit(tmp_path, slurm, recipe, "--local", "--sweep", f"{RATE}=1e30,0.01")
    assert done.returncode == 1
    with (tmp_path / "runs/tiny/table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["state"] for line in lines] == ["failed", "finished"]
    result = json.loads((tmp_path / "runs/tiny" / lines[1]["run"] / "result.json").read_text())
    assert float(lines[1]["map"]) == result["map"]
    assert "finished: 1 of 2 runs" in done.stdout
    _, rows = read_hparams(tmp_path / "runs/tiny")
    assert rows[lines[1]["run"]]["metrics"]["mAP"] == pytest.approx(result["map"], rel=1e-6)
