"""Searches as jobs of a real Slurm cluster, through every fault that they have to survive.

Whatever happened to a search, its alphas are those of the undisturbed one, bit for bit.
"""

from __future__ import annotations

from autoreid.reporting.history import read_history
from tests.helpers.slurm_lab import PATIENCE, lab, undisturbed

__all__ = ["lab", "undisturbed"]


def test_the_time_limit_brings_the_job_back(lab, undisturbed):
    """Both ranks are held until Slurm signals them: the job's life is as long on any machine."""
    job = lab.search("limited", "--time", "2", distributed__timeout_seconds=300.0)
    lab.wait_for_step("limited", 10)
    for rank in range(2):
        lab.cluster.signal_task(job, rank, "STOP")
    result = lab.finish(job, "limited")
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]
    assert lab.kinds("limited") == ["submitted", "started", "stopped", "requeued", "started", "finished"]
    assert [event.reason for event in read_history(lab.run("limited")) if event.kind == "stopped"] == [
        "SIGUSR2"
    ]


def test_a_preempted_job_goes_on_afterwards(lab, undisturbed):
    job = lab.search("preempted", "--partition", "main")
    lab.wait_for_step("preempted", 10)
    lab.cluster.run("srun", "-p", "high", "-N2", "--ntasks-per-node=16", "true", timeout=PATIENCE)
    result = lab.finish(job, "preempted")
    assert result["restarts"] == 1
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]


def test_a_killed_rank_ends_all_and_the_job_comes_back(lab, undisturbed):
    job = lab.search("bereft")
    lab.wait_for_step("bereft", 10)
    lab.cluster.signal_task(job, 1, "KILL")
    result = lab.finish(job, "bereft")
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]
    assert lab.kinds("bereft") == ["submitted", "started", "requeued", "started", "finished"]
    (requeued,) = (event for event in read_history(lab.run("bereft")) if event.kind == "requeued")
    assert "a task was lost" in requeued.reason


def test_a_node_that_loses_its_power_is_survived(lab, undisturbed, faulty_cluster):
    job = lab.search("powerless", distributed__timeout_seconds=20.0)
    lab.wait_for_step("powerless", 10)
    faulty_cluster.kill_node("n2")
    faulty_cluster.wait_for(job, "PENDING", timeout=PATIENCE)
    faulty_cluster.restart_node("n2")
    assert lab.finish(job, "powerless")["alpha_sha256"] == undisturbed["alpha_sha256"]


def test_a_node_whose_daemon_died_is_survived(lab, undisturbed, faulty_cluster):
    job = lab.search("orphaned")
    lab.wait_for_step("orphaned", 10)
    # Held, or the search would be finished before Slurm misses the daemon; the other node's rank waits for this one.
    faulty_cluster.signal_task(job, 0, "STOP")
    faulty_cluster.kill_slurmd("n2")
    faulty_cluster.wait_for(job, "PENDING", timeout=PATIENCE)
    faulty_cluster.restart_slurmd("n2")
    assert lab.finish(job, "orphaned")["alpha_sha256"] == undisturbed["alpha_sha256"]


def test_ranks_cut_off_from_each_other_give_up_and_the_job_comes_back(lab, undisturbed, faulty_cluster):
    job = lab.search("parted", distributed__timeout_seconds=20.0)
    lab.wait_for_step("parted", 10)
    faulty_cluster.on("n2", "ip", "link", "set", "eth0", "down")
    faulty_cluster.wait_for(job, "PENDING", timeout=PATIENCE)
    faulty_cluster.on("n2", "ip", "link", "set", "eth0", "up")
    assert lab.finish(job, "parted")["alpha_sha256"] == undisturbed["alpha_sha256"]
