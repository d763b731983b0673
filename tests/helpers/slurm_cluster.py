"""A real Slurm cluster on this machine with the nodes n1 and n2, and the faults that jobs have to survive.

Each worker of pytest-xdist has its own cluster, with its own folder, bridge and addresses.
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
#: Exit status of the script if a cluster is not possible on this machine.
CANNOT_RUN = 3
#: Final states of jobs. NODE_FAIL is not final, because jobs of a lost node are requeued.
FINAL = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}


class SlurmCluster:
    """A Slurm cluster; `environment` is the environment for its clients (sbatch, srun, submitit)."""

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
        """Run a command on the login node, which is this machine, in the cluster's environment."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def run(self, *command: str | Path, timeout: float = 60) -> str:
        """Run a command, which must succeed, and return its output."""
        return self.call(*command, timeout=timeout).stdout

    def on(self, node: str, *command: str) -> str:
        """Run a command on a node, outside of any job. For example, `ip link set eth0 down` cuts its network."""
        return self.run(SCRIPT, "on", node, *command)

    def facts(self, job: str | int) -> dict[str, str]:
        """Return the fields of `scontrol show job`: JobState, Restarts, Reason, NodeList, ..."""
        shown = self.run("scontrol", "--oneliner", "show", "job", str(job))
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait_for(self, job: str | int, states: Collection[str] | str, timeout: float = 60) -> dict[str, str]:
        """Wait until a job is in one of the states, such as RUNNING, and return its fields.

        Raises:
            AssertionError: the job is in another final state, or the timeout has passed.
        """
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
        """Send a signal to one rank of the job's last step. Slurm's next signal resumes a process stopped by STOP."""
        node, pid = self._task(job, rank)
        self.on(node, "kill", f"-{name}", pid)

    def _task(self, job: str | int, rank: int) -> tuple[str, str]:
        """Return the node of one rank of the job's last step, and its PID on that node."""
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
        """Return PID, job, step, local task id and task id of each process of a job on a node."""
        listed = self.call(SCRIPT, "on", node, "scontrol", "listpids", str(job), node, check=False)
        return [line.split() for line in listed.stdout.splitlines()[1:]]

    def kill_slurmd(self, node: str) -> None:
        """Kill the node's slurmd; its tasks keep running, and after SlurmdTimeout the node is DOWN."""
        self.on(node, "pkill", "-KILL", "--exact", "slurmd")

    def restart_slurmd(self, node: str) -> None:
        self.on(node, "slurmd")

    def kill_node(self, node: str) -> None:
        """Simulate a power failure of a node."""
        self.run(SCRIPT, "kill-node", node)

    def restart_node(self, node: str) -> None:
        self.run(SCRIPT, "start-node", node)

    def restore(self) -> None:
        """Cancel all jobs, and restart the nodes that are not idle."""
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
    """The cluster of the session, for tests that do not break its nodes; skips tests where it cannot run."""
    folder = Path(tempfile.mkdtemp(prefix="autoreid-slurm-"))
    cluster = SlurmCluster(folder)
    started = cluster.start()
    if started.returncode == CANNOT_RUN:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no Slurm cluster: {started.stderr.strip()}")
    assert not started.returncode, started.stderr
    # This process stops the cluster if pytest is killed.
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
    """The same cluster, for tests that break nodes: afterwards all jobs are cancelled and the nodes restored."""
    yield slurm_cluster
    slurm_cluster.restore()
