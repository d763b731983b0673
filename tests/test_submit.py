"""Submitting without a cluster: the batch script, the checks before submission, and --local."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from autoreid.data.training_data import generate_people
from autoreid.recipes import load_config
from autoreid.slurm.environment import not_for_jobs, sbatch_command
from autoreid.slurm.job_options import JobOptions
from autoreid.slurm.planning import plan_runs
from tests.helpers.commands import ROOT, run_job_script
from tests.helpers.tiny import write_tiny

RECORDED = Path(__file__).parent / "data" / "sbatch"


def submit(folder, script, *line, path=None, here=True, keep=False):
    """Run a command of jobs/, with the variables of Slurm only if they are to be kept."""
    environment = {key: value for key, value in os.environ.items() if keep or not key.startswith("SLURM_")}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder / "nothing")}
    if path is not None:
        environment["PATH"] = path
    return run_job_script(script, *line, folder=folder, environment=environment, here=here)


@pytest.fixture
def recipe(tmp_path):
    """A search whose synthetic data exist, with enough people for 16 ranks."""
    path = write_tiny(tmp_path, data__synthetic__people__train_identities=20)
    generate_people(load_config(path).data)
    return path


def contents(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


ALL_OPTIONS = """
 --nodes 2 --gpus 8 --cpus-per-task 6 --mem 400G --time 1-12:00:00 --partition gpu --account lab --qos high
 --constraint a100 --nodelist n[1-2] --exclude n3 --dependency afterok:12 --comment why --mail-user me@lab.org
 --mail-type END,FAIL --signal-lead 300 --max-restarts 7 --slurm reservation=night --slurm hint=nomultithread"""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plain", ["--nodes", "2", "--gpus", "8"]),
        (
            "every_option",
            [*ALL_OPTIONS.split(), "--setup", "module load cuda/12", "--setup", "conda activate reid"],
        ),
        (
            "seeds_on_cpus",
            ["--gpus", "0", "--tasks", "4", "--time", "10", "--seeds", "0", "1", "2", "--array-limit", "2"],
        ),
        (
            "gres_and_container",
            ["--gpus", "4", "--gres", "gpu:a100:4", "--python", "apptainer exec --nv reid.sif python3"],
        ),
    ],
)
def test_a_dry_run_prints_the_recorded_script_and_writes_nothing(recipe, tmp_path, name, line):
    python = [] if "--python" in line else ["--python", "python3"]
    before = contents(tmp_path)
    shown = submit(
        tmp_path,
        "submit_search",
        *line,
        *python,
        "--config",
        recipe,
        "data.batch_size=64",
        "--dry-run",
        path="/nowhere",
    )
    assert shown.returncode == 0, shown.stderr
    assert contents(tmp_path) == before
    text = shown.stdout.replace(str(tmp_path), "/shared")
    recorded = RECORDED / f"{name}.sh"
    if os.environ.get("AUTOREID_RECORD"):
        recorded.write_text(text)
    assert text == recorded.read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["training.epohs=3"], "did you mean training.epochs"),
        (["data.root=/nowhere", "data.synthetic={}"], "/nowhere"),
        (["--nodes", "3"], "batch"),  # 16 images over 6 ranks
        (["--nodes", "8", "--tasks", "4"], "batch"),
        (["data.images_per_identity=16", "data.batch_size=32"], "images"),
        (["task=train"], "task = train, expected search; submit it with jobs/submit_train.py"),
        (["--time", "soon"], "--time"),
    ],
)
def test_errors_are_found_before_submission(recipe, tmp_path, line, message):
    before = contents(tmp_path)
    tasks = [] if "--tasks" in line else ["--tasks", "2"]
    refused = submit(tmp_path, "submit_search", "--gpus", "0", *tasks, "--config", recipe, *line)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert contents(tmp_path) == before


def test_submitting_without_slurm_is_an_error(recipe, tmp_path):
    refused = submit(tmp_path, "submit_search", "--gpus", "0", "--config", recipe, path="/nowhere")
    assert refused.returncode == 2
    assert "sbatch: command not found" in refused.stderr
    assert "--local" in refused.stderr
    assert not (tmp_path / "runs").exists()


#: What an interactive job with `srun --mem-per-cpu=1G --gpus-per-task=1 --hint=nomultithread --pty bash` has set.
ALLOCATION = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "1",
    "SLURM_MEM_PER_CPU": "1024",
    "SLURM_GPUS_PER_TASK": "1",
    "SLURM_HINT": "nomultithread",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SBATCH_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURMD_NODENAME": "n7",
    "SRUN_CPUS_PER_TASK": "2",
    "CUDA_VISIBLE_DEVICES": "3",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
    "RANK": "0",
    "TORCHELASTIC_RUN_ID": "none",
}
KEPT = {
    "SLURM_CONF": "/etc/slurm.conf",
    "SBATCH_ACCOUNT": "lab",
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/me",
    "AUTOREID_SLURM_QOS": "high",
}


def test_a_job_gets_nothing_of_the_allocation_that_it_is_submitted_from():
    assert set(not_for_jobs(ALLOCATION | KEPT)) == set(ALLOCATION)
    *prefix, name, script = sbatch_command(ALLOCATION | KEPT, "job.sh")
    assert (name, script) == ("sbatch", "job.sh")
    shown = subprocess.run(
        [*prefix, "env"], env=ALLOCATION | KEPT, capture_output=True, text=True, check=True
    )
    assert dict(line.split("=", 1) for line in shown.stdout.splitlines()) == KEPT
    assert sbatch_command(KEPT, "job.sh") == ["sbatch", "job.sh"]


@pytest.mark.parametrize("mode", [["--test-only"], []])
def test_sbatch_is_called_in_a_clean_environment(recipe, tmp_path, monkeypatch, mode):
    """A fake sbatch prints its environment; test_slurm.py uses the real one."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho Submitted batch job 12\n")
    sbatch.chmod(0o755)
    for name, value in ALLOCATION.items():
        monkeypatch.setenv(name, value)
    done = submit(
        tmp_path,
        "submit_search",
        "--gpus",
        "0",
        "--config",
        recipe,
        *mode,
        path=f"{sbatch.parent}:/usr/bin:/bin",
        keep=True,
    )
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert not set(ALLOCATION) & set(seen)


def test_each_torchrun_job_has_its_own_port_and_survives_the_signal(tmp_path):
    """The programs of the script are fakes: srun runs its command, and torchrun signals itself and prints its options.

    test_slurm.py runs the script on a cluster.
    """
    fakes = {
        "scontrol": "echo n7",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "torchrun": 'kill -USR2 $$; echo "$@"',
        "python": 'echo "python $@"',
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(job, restart):
        variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n7"}
        variables |= {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "8", "SLURM_RESTART_COUNT": restart}
        script = [ROOT / "scripts" / "sbatch_torchrun.sh", "my config.yaml", "runs/x"]
        done = subprocess.run(["bash", *script], env=variables, capture_output=True, text=True)
        launch, resume = done.stdout.splitlines()
        assert resume == "python -m autoreid.slurm.resume --run runs/x --status 0"
        assert launch.endswith("-m autoreid.train --config my config.yaml")
        return int(re.search(r"--rdzv-endpoint=n7:(\d+) ", launch)[1])

    ports = [run("41", "0"), run("42", "0"), run("41", "1")]
    assert len({*ports}) == 3
    assert all(20_000 <= port < 60_000 for port in ports)


def test_a_job_with_gpus_does_not_fall_back_to_cpus(tmp_path):
    recipe = write_tiny(tmp_path, distributed__device="auto")
    with_gpus, without = (
        plan_runs(recipe, [[]], "search", JobOptions(gpus=gpus))[0].config for gpus in (2, 0)
    )
    assert (with_gpus.distributed.device, without.distributed.device) == ("cuda", "auto")


@pytest.mark.slow
def test_local_runs_on_this_machine_and_status_logs_and_cancel_find_the_run(recipe, tmp_path):
    line = ["--gpus", "0", "--tasks", "2", "--local", "--config", recipe, "training.epochs=1"]
    done = submit(tmp_path, "submit_search", *line, here=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text())
    assert result["epochs"] == 1
    assert "on each of 2 ranks" in (tmp_path / "runs" / "tiny" / "logs" / "rank0.log").read_text()

    rows = json.loads(submit(tmp_path, "status", "--json").stdout)
    assert [(row["run"], row["state"], row["restarts"], row["job"]) for row in rows] == [
        ("tiny", "finished", 0, None)
    ]
    assert rows[0]["epoch"] == 1
    assert rows[0]["map"] == pytest.approx(result["map"])
    table = submit(tmp_path, "status", "tiny").stdout.splitlines()
    assert table[0].split()[:4] == ["run", "task", "job", "state"]
    assert "finished" in table[1]

    log = submit(tmp_path, "logs", "tiny", "--rank", "1", "--lines", "3", here=False)
    assert log.stdout == "".join((tmp_path / "runs/tiny/logs/rank1.log").read_text().splitlines(True)[-3:])
    missing = submit(tmp_path, "logs", "tiny", "--rank", "2")
    assert missing.returncode == 2
    assert "existing logs: rank0.log, rank1.log" in missing.stderr
    assert "no job in the queue" in submit(tmp_path, "cancel", "tiny").stdout
    unknown = submit(tmp_path, "status", "tinny")
    assert unknown.returncode == 2
    assert "tinny: no run" in unknown.stderr


def test_a_pipeline_with_missing_evaluation_data_is_rejected(recipe, tmp_path):
    line = ["--config", recipe, "--train-config", ROOT / "configs" / "quickstart_train.yaml", "--gpus", "0"]
    refused = submit(tmp_path, "submit_pipeline", *line, "--data", tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "--data" in refused.stderr
    assert "nowhere" in refused.stderr
    refused = submit(tmp_path, "submit_pipeline", *line, "--data", tmp_path, "training.epochs=2")
    assert refused.returncode == 2
    assert "--data training.epochs=2: no such file or folder: 2; overrides must come before --data" in (
        refused.stderr
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_pipeline_searches_derives_trains_and_evaluates(tmp_path):
    recipe = write_tiny(tmp_path, training__epochs=1)
    options = {"channels": 4, "cells_per_stage": [1, 1]}
    (tmp_path / "other").mkdir()
    trained = {
        "task": "train",
        "model__name": "derived",
        "model__options": options,
        "evaluation__split": "test",
    }
    training = write_tiny(tmp_path / "other", **trained, data__root=str(tmp_path))
    line = ["--config", recipe, "--train-config", training, "--train", f"output_dir={tmp_path / 'runs'}"]
    line += ["--gpus", "0", "--seeds", "0", "1", "--random", "1", "--data", tmp_path / "people"]
    done = submit(tmp_path, "submit_pipeline", *line, "--local", here=False)
    assert done.returncode == 0, done.stderr

    def read(path):
        return json.loads((tmp_path / path).read_text())

    rounds = read("tournaments/tiny_found/rounds.json")
    first, second = rounds["rounds"]
    assert set(first["results"]) == {"tiny-seed0", "tiny-seed1", "random:0"}
    assert len(second["results"]) == 2
    assert read("derived/tiny_found/genotype.json") == rounds["genotype"]
    for name in {"tiny-seed0", "tiny-seed1"} & {rounds["winner"]}:
        assert rounds["genotype"] == read(f"runs/{name}/result.json")["genotype"]
    (cell,) = read("runs/tiny_found_evaluation/result.json")["results"]
    assert cell["map"] == pytest.approx(read("runs/tiny_found/result.json")["best_map"], abs=1e-6)
