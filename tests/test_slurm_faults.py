"""Searches as jobs of a real Slurm cluster, under every fault that they have to survive.

After each fault, the alphas of the search equal those of an uninterrupted search bit for bit.
"""

from __future__ import annotations

from autoreid.reporting.history import read_history
from tests.helpers.slurm_lab import PATIENCE, lab, undisturbed

__all__ = ["lab", "undisturbed"]


def test_a_job_that_reaches_its_time_limit_is_requeued(lab, undisturbed):
    """Both ranks are paused until Slurm signals them, so that the job takes equally long on any machine."""
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


def test_a_preempted_job_resumes_afterwards(lab, undisturbed):
    job = lab.search("preempted", "--partition", "main")
    lab.wait_for_step("preempted", 10)
    lab.cluster.run("srun", "-p", "high", "-N2", "--ntasks-per-node=16", "true", timeout=PATIENCE)
    result = lab.finish(job, "preempted")
    assert result["restarts"] == 1
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]


def test_a_killed_rank_ends_all_ranks_and_the_job_is_requeued(lab, undisturbed):
    job = lab.search("killed_rank")
    lab.wait_for_step("killed_rank", 10)
    lab.cluster.signal_task(job, 1, "KILL")
    result = lab.finish(job, "killed_rank")
    assert result["alpha_sha256"] == undisturbed["alpha_sha256"]
    # The other rank loses contact, and most often records that before srun kills it.
    kinds = [kind for kind in lab.kinds("killed_rank") if kind != "crashed"]
    assert kinds == ["submitted", "started", "requeued", "started", "finished"]
    (requeued,) = (event for event in read_history(lab.run("killed_rank")) if event.kind == "requeued")
    assert "a Slurm task was lost" in requeued.reason


def test_a_job_survives_a_node_that_loses_power(lab, undisturbed, faulty_cluster):
    job = lab.search("lost_node", distributed__timeout_seconds=20.0)
    lab.wait_for_step("lost_node", 10)
    faulty_cluster.kill_node("n2")
    faulty_cluster.wait_for(job, "PENDING", timeout=PATIENCE)
    faulty_cluster.restart_node("n2")
    assert lab.finish(job, "lost_node")["alpha_sha256"] == undisturbed["alpha_sha256"]


def test_a_job_survives_a_node_whose_slurmd_dies(lab, undisturbed, faulty_cluster):
    job = lab.search("lost_slurmd")
    lab.wait_for_step("lost_slurmd", 10)
    # Paused, so that the search does not finish before Slurm notices; the rank on the other node waits for this one.
    faulty_cluster.signal_task(job, 0, "STOP")
    faulty_cluster.kill_slurmd("n2")
    faulty_cluster.wait_for(job, "PENDING", timeout=PATIENCE)
    faulty_cluster.restart_slurmd("n2")
    assert lab.finish(job, "lost_slurmd")["alpha_sha256"] == undisturbed["alpha_sha256"]


def test_ranks_that_lose_their_network_time_out_and_the_job_is_requeued(lab, undisturbed, faulty_cluster):
    job = lab.search("lost_network", distributed__timeout_seconds=20.0)
    lab.wait_for_step("lost_network", 10)
    faulty_cluster.on("n2", "ip", "link", "set", "eth0", "down")
    faulty_cluster.wait_for(job, "PENDING", timeout=PATIENCE)
    faulty_cluster.on("n2", "ip", "link", "set", "eth0", "up")
    assert lab.finish(job, "lost_network")["alpha_sha256"] == undisturbed["alpha_sha256"]
