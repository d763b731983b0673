from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import SCRIPT, SlurmCluster

ALL_REDUCE = """
import torch
from torch import distributed as dist
from autoreid import distributed

with distributed.setup("cpu", 60) as world:
    total = torch.tensor([2.0**world.rank])
    dist.all_reduce(total)
    print(world.rank, world.local_rank, total.item())
"""


def refused(folder: Path, *command: str, without: str = "") -> subprocess.CompletedProcess[str]:
    """Return the finished script, which must have printed an error."""
    drop = ["setpriv", f"--bounding-set=-{without}"] if without else []
    done = subprocess.run(
        [*drop, SCRIPT, *command],
        env=os.environ | {"AUTOREID_SLURM_LAB": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.startswith("local_slurm: ")
    return done


def test_two_nodes(slurm_cluster: SlurmCluster) -> None:
    assert sorted(slurm_cluster.run("srun", "-N2", "hostname").split()) == ["n1", "n2"]


def test_starting_a_running_cluster_says_that_it_is_running(slurm_cluster: SlurmCluster) -> None:
    again = slurm_cluster.start()
    assert again.returncode == 0
    assert "already running" in again.stderr
    assert again.stdout == f"export SLURM_CONF={slurm_cluster.environment['SLURM_CONF']}\n"


def test_status(slurm_cluster: SlurmCluster) -> None:
    shown = slurm_cluster.run(SCRIPT, "status")
    assert "n1" in shown
    assert "n2" in shown


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ("--gpus-per-node=2", {"0,1"}),
        ("--gres=gpu:2", {"0,1"}),
        ("--gpus-per-task=1", {"0", "1"}),
    ],
)
def test_declared_gpus(slurm_cluster: SlurmCluster, option: str, seen: set[str]) -> None:
    tasks = slurm_cluster.run(
        "srun", "-N2", "--ntasks-per-node=2", option, "bash", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES"
    )
    assert len(tasks.splitlines()) == 4
    assert {tuple(line.split()) for line in tasks.splitlines()} == {
        (node, devices) for node in ("n1", "n2") for devices in seen
    }


def test_ranks_meet_across_nodes(slurm_cluster: SlurmCluster) -> None:
    shown = slurm_cluster.run(
        "srun", "-N2", "--ntasks-per-node=2", "--label", sys.executable, "-c", ALL_REDUCE, timeout=120
    )
    ranks = {line.split(": ", 1)[1] for line in shown.splitlines()}
    assert ranks == {"0 0 15.0", "1 1 15.0", "2 0 15.0", "3 1 15.0"}


def test_each_node_has_its_own_shared_memory(slurm_cluster: SlurmCluster) -> None:
    folder = "/dev/shm"  # noqa: S108
    slurm_cluster.on("n1", "touch", f"{folder}/mine")
    assert "mine" in slurm_cluster.on("n1", "ls", folder)
    assert "mine" not in slurm_cluster.on("n2", "ls", folder)


def test_a_killed_rank_ends_the_job(faulty_cluster: SlurmCluster, tmp_path: Path) -> None:
    line = "srun --kill-on-bad-exit=1 --ntasks-per-node=2 sleep 300"
    job = faulty_cluster.run(
        "sbatch", "--parsable", "-N2", "--ntasks-per-node=2", "-o", str(tmp_path / "log"), "--wrap", line
    ).strip()
    step_runs(faulty_cluster, job)
    faulty_cluster.signal_task(job, 3, "KILL")
    assert faulty_cluster.wait_for(job, "FAILED")["Restarts"] == "0"


def step_runs(cluster: SlurmCluster, job: str) -> None:
    cluster.wait_for(job, "RUNNING")
    while f"{job}.0" not in cluster.run("squeue", "--noheader", "--steps", "--format=%i"):
        cluster.wait_for(job, "RUNNING")


def test_stop_removes_everything(slurm_cluster: SlurmCluster) -> None:
    folder = Path(tempfile.mkdtemp(prefix="autoreid-slurm-"))
    second = SlurmCluster(folder)
    assert second.start().returncode == 0
    try:
        spaces = {second.on(node, "readlink", "/proc/self/ns/net").strip() for node in ("n1", "n2")}
        bridges = subprocess.check_output(["ip", "-oneline", "link"], text=True)
        assert f"alias {folder}\n" in bridges
        srun = subprocess.Popen(["srun", "-N2", "sleep", "300"], env=second.environment)
    finally:
        second.stop()
    assert srun.wait(30) != 0
    assert not folder.exists()
    assert str(folder) not in subprocess.check_output(["ip", "-oneline", "link"], text=True)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            assert str((process / "ns" / "net").readlink()) not in spaces
            assert str(folder) not in (process / "cmdline").read_text()
        except OSError:
            continue  # it has ended
    assert refused(folder, "status").returncode == 3
    assert sorted(slurm_cluster.run("srun", "-N2", "hostname").split()) == ["n1", "n2"]


def test_a_folder_with_other_files_is_not_touched(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    done = refused(tmp_path, "start")
    assert (done.returncode, done.stderr) == (
        1,
        f"local_slurm: {tmp_path}: the folder contains other files; set AUTOREID_SLURM_LAB to another folder\n",
    )
    subprocess.run([SCRIPT, "stop"], env=os.environ | {"AUTOREID_SLURM_LAB": str(tmp_path)}, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("without", "complaint"), [("sys_admin", "namespaces"), ("net_admin", "bridge"), ("mknod", "devices")]
)
def test_a_missing_privilege_is_named(
    slurm_cluster: SlurmCluster, tmp_path: Path, without: str, complaint: str
) -> None:
    folder = tmp_path / "lab"
    done = refused(folder, "start", without=without)
    assert done.returncode == 3
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not folder.exists()


@pytest.mark.parametrize("command", [[], ["begin"], ["on", "n1"], ["start", "now"]])
def test_bad_command_lines(tmp_path: Path, slurm_cluster: SlurmCluster, command: list[str]) -> None:
    assert refused(tmp_path, *command).returncode == 2
