"""A real Slurm cluster of two nodes on this machine, n1 and n2, and the faults that a job has to survive.

Each worker of pytest-xdist has a cluster of its own, with its own folder, bridge and addresses.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "local_slurm.sh"
NODES = ("n1", "n2")
#: Exit status of the script where this machine cannot have a cluster.
CANNOT_RUN = 3
#: What no job leaves by itself; a lost node's jobs are requeued, so NODE_FAIL is none of these.
FINAL = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}


class SlurmCluster:
    """A running cluster; `environment` is what its clients (sbatch, srun, submitit) need."""

    def __init__(self, folder: Path) -> None:
        foreign = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(foreign)
        } | {"SLURM_CONF": str(folder / "etc" / "slurm.conf"), "AUTOREID_SLURM_LAB": str(folder)}

    def start(self) -> subprocess.CompletedProcess[str]:
        return self.call(SCRIPT, "start", timeout=600, check=False)

    def stop(self) -> None:
        self.run(SCRIPT, "stop")

    def call(
        self, *command: str | Path, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of the login node, which is this machine, in the cluster's environment."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def run(self, *command: str | Path, timeout: float = 60) -> str:
        """What the command printed; it has to succeed."""
        return self.call(*command, timeout=timeout).stdout

    def on(self, node: str, *command: str) -> str:
        """Runs a command on a node, outside of any job: `ip link set eth0 down` cuts its network."""
        return self.run(SCRIPT, "on", node, *command)

    def facts(self, job: str | int) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, Reason, NodeList, ..."""
        shown = self.run("scontrol", "--oneliner", "show", "job", str(job))
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait_for(self, job: str | int, states: Collection[str] | str, timeout: float = 60) -> dict[str, str]:
        """The job's facts once it is in one of the states, such as RUNNING; fails when it ended in another."""
        states = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout
        while (facts := self.facts(job))["JobState"] not in states:
            if facts["JobState"] in FINAL or time.monotonic() > end:
                log = Path(facts.get("StdOut", ""))
                text = log.read_text() if log.is_file() else ""
                raise AssertionError(f"job {job} is not in {sorted(states)}: {facts}\n{text}")
            time.sleep(0.2)
        return facts

    def signal_task(self, job: str | int, rank: int, name: str) -> None:
        """Sends one rank of the job's last step a signal; a stopped one is woken by the next that Slurm sends."""
        node, pid = self._task(job, rank)
        self.on(node, "kill", f"-{name}", pid)

    def _task(self, job: str | int, rank: int) -> tuple[str, str]:
        """Node and PID there of one rank of the job's last step."""
        tasks = [
            (int(step), node, pid)
            for node in NODES
            for pid, _, step, _, task in self._processes(job, node)
            if task == str(rank) and step.isdigit()
        ]
        assert tasks, f"job {job} has no rank {rank}"
        _, node, pid = max(tasks)
        return node, pid

    def _processes(self, job: str | int, node: str) -> list[list[str]]:
        """PID, job, step, rank on the node and rank of the job's processes on a node."""
        listed = self.call(SCRIPT, "on", node, "scontrol", "listpids", str(job), node, check=False)
        return [line.split() for line in listed.stdout.splitlines()[1:]]

    def kill_slurmd(self, node: str) -> None:
        """The node's daemon dies, the tasks go on; after SlurmdTimeout the node is DOWN."""
        self.on(node, "pkill", "-KILL", "--exact", "slurmd")

    def restart_slurmd(self, node: str) -> None:
        self.on(node, "slurmd")

    def kill_node(self, node: str) -> None:
        """The node loses its power."""
        self.run(SCRIPT, "kill-node", node)

    def restart_node(self, node: str) -> None:
        self.run(SCRIPT, "start-node", node)

    def restore(self) -> None:
        """Cancels all jobs and brings the nodes back to idle."""
        self.run("scancel", "--partition=main")
        self.run("scancel", "--partition=high")
        for node in NODES:
            if self.call(SCRIPT, "on", node, "pgrep", "--exact", "slurmd", check=False).returncode:
                self.call(SCRIPT, "kill-node", node, check=False)
                self.restart_node(node)
            self.on(node, "ip", "link", "set", "eth0", "up")
        end = time.monotonic() + 60
        while set(self.run("sinfo", "--noheader", "--Node", "--format=%T").split()) != {"idle"}:
            assert time.monotonic() < end, self.run("sinfo", "--Node", "--long")
            time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """The session's cluster, for tests that leave its nodes as they are; skipped where it cannot run."""
    folder = Path(tempfile.mkdtemp(prefix="autoreid-slurm-"))
    cluster = SlurmCluster(folder)
    started = cluster.start()
    if started.returncode == CANNOT_RUN:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no Slurm cluster: {started.stderr.strip()}")
    assert not started.returncode, started.stderr
    # Tests that are killed cannot stop it themselves.
    watch = subprocess.Popen(
        ["sh", "-c", 'tail --pid=$0 -f /dev/null; exec "$1" stop', str(os.getpid()), SCRIPT],
        env=cluster.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield cluster
    os.killpg(watch.pid, signal.SIGKILL)
    watch.wait()
    cluster.stop()


@pytest.fixture
def faulty_cluster(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The same cluster for tests that break it: afterwards all jobs are cancelled and all nodes are mended."""
    yield slurm_cluster
    slurm_cluster.restore()
