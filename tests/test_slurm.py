"""Searches, trainings and evaluations as jobs of a real Slurm cluster.

However a search is started and stopped, its alphas equal those of an uninterrupted search bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoreid.reporting.history import read_history
from tests.helpers.commands import ROOT
from tests.helpers.slurm_lab import FOUR_RANKS, PATIENCE, TWO_RANKS, lab, undisturbed
from tests.helpers.tiny import DERIVED_TRAINING, OSNET_TRAINING, write_tiny

__all__ = ["lab", "undisturbed"]


def test_two_nodes_and_four_tasks_search_together_through_jobs_and_srun(lab):
    """The job is submitted from inside another allocation, whose variables srun would take for its options."""
    short = {"training__epochs": 1, "data__batch_size": 32}
    other = {
        "SLURM_JOB_ID": "1",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_GPUS_PER_TASK": "1",
        "MASTER_ADDR": "localhost",
    }
    outside, lab.environment = lab.environment, lab.environment | other
    try:
        job = lab.search("four", "--mem", "4G", ranks=FOUR_RANKS, **short)
    finally:
        lab.environment = outside
    by_jobs = lab.finish(job, "four")
    run = lab.run("four")
    assert (by_jobs["steps"], by_jobs["restarts"]) == (8, 0)
    assert lab.kinds("four") == ["submitted", "started", "finished"]
    assert json.loads((run / "environment.json").read_text())["world_size"] == 4
    assert sorted(path.name for path in (run / "logs").iterdir()) == [f"rank{rank}.log" for rank in range(4)]
    assert len(list((run / "slurm").glob("*_[0-3]_log.out"))) == 4
    command = [sys.executable, "-m", "autoreid.train", "--config", lab.recipe("four_by_srun", **short)]
    lab.cluster.environment, before = lab.environment, lab.cluster.environment
    try:
        lab.cluster.run("srun", "-N2", "--ntasks-per-node=2", *command, timeout=PATIENCE)
    finally:
        lab.cluster.environment = before
    assert lab.result("four_by_srun")["alpha_sha256"] == by_jobs["alpha_sha256"]


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_users_batch_scripts_give_the_same_result_and_requeue(lab, undisturbed, launcher):
    name = f"by_{launcher}"
    script = shutil.copy(ROOT / "scripts" / f"sbatch_{launcher}.sh", lab.folder)
    resources = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--time=20"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sbatch", *resources, script, lab.recipe(name), lab.run(name)],
        cwd=lab.folder,
        env=lab.environment | {"PATH": path, "RANKS_PER_NODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]
    lab.wait_for_step(name, 10)
    # The signal that Slurm sends before the time limit.
    lab.cluster.run("scancel", "--signal=USR2", job)
    result = lab.finish(job, name)
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]
    assert lab.kinds(name) == ["started", "stopped", "requeued", "started", "finished"]
    log = (lab.folder / f"slurm-{job}.out").read_text()
    assert "User defined signal" not in log, "the signal must not kill the launcher"


def test_a_requeue_within_an_epoch_loses_at_most_the_current_step(lab, undisturbed):
    name = "requeued"
    job = lab.search(name, checkpoint__every_steps=1000)
    lab.wait_for_step(name, 10)
    lab.cluster.run("scontrol", "requeue", job)
    result = lab.finish(job, name)
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]
    assert result["genotype"] == undisturbed["genotype"]
    assert result["restarts"] == 1
    events = read_history(lab.run(name))
    stopped, started = (next(e for e in events[2:] if e.kind == kind) for kind in ("stopped", "started"))
    assert stopped.reason == "SIGTERM"
    assert started.step == stopped.step >= 10
    assert (started.job, started.restart) == (job, 1)
    for log in (lab.run(name) / "slurm").glob("*_log.out"):
        assert log.read_text().count("Starting with JobEnvironment") == 2, (
            "the second start appends to the same log"
        )


def test_a_second_search_with_the_same_name_is_rejected_while_the_first_is_queued(lab):
    (job,) = lab.submit(*TWO_RANKS, "--slurm", "begin=now+1hour", "--config", lab.recipe("twice"))
    again = lab.call("submit_search", *TWO_RANKS, "--config", lab.recipe("twice"))
    assert again.returncode == 2
    assert f"job {job} of this run is still PENDING" in again.stderr
    rows = json.loads(lab.call("status", "--json", "twice").stdout)
    assert (rows[0]["state"], rows[0]["job"]) == ("PENDING", job)
    assert "cancelled job" in lab.call("cancel", job).stdout
    assert lab.call("submit_search", *TWO_RANKS, "--config", lab.recipe("twice"), "--dry-run").returncode == 0


def test_a_cancelled_search_saves_and_resumes_when_submitted_again(lab, undisturbed):
    job = lab.search("cancelled")
    lab.wait_for_step("cancelled", 10)
    # Paused, so that it does not finish before the commands have run.
    lab.cluster.signal_task(job, 0, "STOP")
    row = json.loads(lab.call("status", "--json", "cancelled").stdout)[0]
    assert (row["state"], row["task"], row["steps"], row["job"]) == ("RUNNING", "search", 64, job)
    assert row["step"] >= 10
    raw = lab.call("logs", "cancelled", "--raw", "--rank", "1", here=False).stdout
    assert "submitit INFO" in raw
    assert "cancelled job" in lab.call("cancel", "cancelled").stdout
    lab.cluster.wait_for(job, "CANCELLED")
    result = lab.finish(lab.search("cancelled"), "cancelled")
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]
    assert result["restarts"] == 1


def test_a_run_that_would_fail_again_is_not_requeued(lab):
    job = lab.search("exploding", training__learning_rate=1e30, training__final_learning_rate=0.0)
    lab.cluster.wait_for(job, "FAILED", timeout=PATIENCE)
    assert lab.kinds("exploding") == ["submitted", "started", "failed"]
    row = json.loads(lab.call("status", "--json", "exploding").stdout)[0]
    assert row["state"] == "failed"
    assert "not finite" in row["reason"]


def test_failures_before_the_first_step_end_the_job_and_its_requeues(lab):
    """One job in which srun always fails, and one in which rank 1 alone fails, before it has a log."""
    # A function of the batch script's shell, which takes the place of the program.
    nowhere = lab.search("nowhere", "--setup", "srun() { echo srun: no node; return 9; }")
    lab.run("alone").joinpath("logs", "rank1.log").mkdir(parents=True)
    alone = lab.search("alone")
    facts = lab.cluster.wait_for(alone, "FAILED", timeout=PATIENCE)
    assert (facts["ExitCode"], facts["Restarts"]) == ("2:0", "0")
    events = read_history(lab.run("alone"))
    assert [event.kind for event in events[:2]] == ["submitted", "started"]
    (failed,) = (event for event in events if event.kind == "failed")
    assert failed.status == 2
    assert failed.reason.startswith(f"rank 1: {lab.run('alone')}/logs/rank1.log: cannot write the log")
    output = (lab.run("alone") / "slurm" / f"{alone}_1_log.out").read_text()
    assert "autoreid: rank 1 on n2: " in output
    assert "cannot write the log: Is a directory" in output
    facts = lab.cluster.wait_for(nowhere, "FAILED", timeout=PATIENCE)
    assert (facts["ExitCode"], facts["Restarts"]) == ("9:0", "2")
    assert lab.kinds("nowhere") == ["submitted", "requeued", "requeued"]
    log = (lab.run("nowhere") / "slurm" / f"{nowhere}_0_log.out").read_text()
    assert "job not requeued: no progress beyond step 0 in the last 3 starts" in log


def test_slurm_validates_a_script_without_submitting_it(lab):
    accepted = lab.call("submit_search", *TWO_RANKS, "--config", lab.recipe("tested"), "--test-only")
    assert accepted.returncode == 0, accepted.stderr
    assert "Job" in accepted.stdout
    refused = lab.call(
        "submit_search", *TWO_RANKS, "--config", lab.recipe("tested"), "--test-only", "--partition", "no"
    )
    assert refused.returncode == 2
    assert "partition" in refused.stderr
    queued = lab.call("submit_search", *TWO_RANKS, "--config", lab.recipe("tested"), "--partition", "no")
    assert queued.returncode == 1
    assert "sbatch rejected the job" in queued.stderr
    assert "partition" in queued.stderr


def test_the_pipeline_is_a_chain_of_dependent_jobs(lab):
    (lab.folder / "way").mkdir()
    recipe = lab.recipe("way", training__epochs=1, data__batch_size=32)
    training = write_tiny(
        lab.folder / "way",
        task="train",
        model__name="derived",
        model__options={"channels": 4, "cells_per_stage": [1, 1]},
        evaluation__split="test",
        data__root=str(lab.folder),
        data__synthetic__people__train_identities=40,
        data__synthetic__people__images_per_identity=16,
        output_dir=str(lab.folder / "runs"),
        training__epochs=1,
    )
    line = ["--nodes", "1", "--gpus", "0", "--tasks", "1", "--cpus-per-task", "1", "--config", recipe]
    line += ["--train-config", training, "--seeds", "0", "1", "--data", lab.folder / "people"]
    jobs = lab.submit(*line, script="submit_pipeline")
    assert len(jobs) == 6  # two searches, tournament, derive, train, evaluate
    assert lab.cluster.facts(jobs[-1])["Dependency"].startswith(f"afterok:{jobs[-2]}")
    lab.cluster.wait_for(jobs[-1], "COMPLETED", timeout=PATIENCE)
    winner = json.loads((lab.folder / "tournaments/way_found/rounds.json").read_text())["winner"]
    genotype = json.loads((lab.folder / "derived/way_found/genotype.json").read_text())
    assert genotype == lab.result(winner)["genotype"]
    (cell,) = json.loads((lab.folder / "runs/way_found_evaluation/result.json").read_text())["results"]
    assert cell["map"] == pytest.approx(lab.result("way_found")["best_map"], abs=1e-6)


@pytest.mark.slow
def test_a_study_is_two_arrays_and_a_table_and_its_trainings_are_requeued(lab):
    folder = lab.folder / "compared"
    folder.mkdir()
    search = write_tiny(folder, training__epochs=1).rename(folder / "search.yaml")
    train = write_tiny(folder, **DERIVED_TRAINING, training__epochs=20).rename(folder / "train.yaml")
    line = ["--gpus", "0", "--cpus-per-task", "1", "--search", search, "--train", train, "--searches", "2"]
    line += ["--random", "1", "--output", folder / "study", "--trainings-at-once", "2"]
    jobs = lab.submit(*line, script="submit_study")
    assert len(jobs) == 5  # two searches, two shares of the trainings, the table
    array, share, table = jobs[2].partition("_")[0], jobs[2], jobs[-1]
    assert lab.cluster.facts(share)["Dependency"].startswith(f"afterany:{jobs[0].partition('_')[0]}")
    assert lab.cluster.facts(table)["Dependency"].startswith(f"afterany:{array}")
    runs = folder / "study/runs"
    end = time.monotonic() + PATIENCE
    while [event.kind for event in read_history(runs / "trainings0")] != ["submitted", "started"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    # The signal that Slurm sends before the time limit.
    lab.cluster.run("scancel", "--signal=USR2", share)
    lab.cluster.wait_for(table, "COMPLETED", timeout=PATIENCE)
    kinds = {run.name: [event.kind for event in read_history(run)] for run in sorted(runs.iterdir())}
    once = ["submitted", "started", "finished"]
    requeued = ["submitted", "started", "stopped", "requeued", "started", "finished"]
    assert kinds == {"search0": once, "search1": once, "trainings0": requeued, "trainings1": once}
    content = json.loads((folder / "study/study.json").read_text())
    assert content["missing"] == []
    for network in content["found"]:
        assert (
            network["genotype"]
            == json.loads((runs / network["name"] / "result.json").read_text())["genotype"]
        )
    lines = [json.loads(line) for line in (folder / "study/trials.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == ["found0", "found1", "random0"]
    rows = json.loads(lab.call("status", "--json", folder / "study").stdout)
    assert [(row["run"], row["state"], row["job"]) for row in rows] == [
        ("search0", "finished", jobs[0]),
        ("search1", "finished", jobs[1]),
        ("trainings0", "finished", jobs[2]),
        ("trainings1", "finished", jobs[3]),
    ]


@pytest.mark.slow
def test_a_sweep_is_an_array_whose_runs_end_in_one_table(lab):
    folder = lab.folder / "swept"
    folder.mkdir()
    recipe = write_tiny(folder, **OSNET_TRAINING, training__epochs=2, checkpoint__every_steps=1000)
    sweeps = ["--sweep", "training.learning_rate=0.01,0.05", "--sweep", "seed=0..1"]
    line = ["--gpus", "0", "--cpus-per-task", "1", "--time", "20", "--array-limit", "2", "--config", recipe]
    jobs = lab.submit(*line, *sweeps, script="submit_train")
    array = jobs[0].partition("_")[0]
    assert jobs == [f"{array}_{place}" for place in range(4)]
    sweep = folder / "runs/tiny"
    before = json.loads(lab.call("sweep", sweep, "--json").stdout)["runs"]
    assert [row["job"] for row in before] == jobs
    requeued = Path(before[0]["folder"])
    lab.wait_for_step(requeued, 2)
    lab.cluster.run("scontrol", "requeue", jobs[0])
    for job in jobs:
        lab.cluster.wait_for(job, "COMPLETED", timeout=PATIENCE)
    content = json.loads(lab.call("sweep", sweep, "--json").stdout)
    assert [(row["state"], row["values"]["seed"]) for row in content["runs"]] == [
        ("finished", 0),
        ("finished", 1),
    ] * 2
    for row in content["runs"]:
        result = json.loads((Path(row["folder"]) / "result.json").read_text())
        assert (row["map"], row["rank1"]) == (result["map"], result["cmc"]["1"])
    assert [(mean["finished"], mean["runs"]) for mean in content["means"]] == [(2, 2)] * 2
    events = read_history(requeued)
    assert [event.kind for event in events] == ["submitted", "started", "stopped", "started", "finished"]
    assert events[3].step == events[2].step >= 2, "the requeued run resumes where it was stopped"
    again = lab.call("submit_train", *line, *sweeps)
    assert (again.returncode, "0 of them to submit" in again.stderr) == (0, True)
