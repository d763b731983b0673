"""A folder to submit searches from to a cluster. Test modules import the fixtures that they use."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from autoreid.reporting.history import read_history
from tests.helpers.commands import ROOT, run_job_script
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.tiny import write_tiny

#: Options for one rank, and for two ranks, on each of two nodes.
TWO_RANKS = ("--nodes", "2", "--gpus", "0", "--cpus-per-task", "1")
FOUR_RANKS = (*TWO_RANKS, "--tasks", "2")
PATIENCE = 400


class Lab:
    """A folder to submit jobs from, and the cluster to submit them to."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.environment = cluster.environment | {
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(folder / "nothing"),
            "OMP_NUM_THREADS": "1",
        }
        # The variables of a launcher that started pytest must not reach the jobs.
        for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
            self.environment.pop(name, None)

    def recipe(self, name, **changes):
        """Write the recipe of a search of 64 steps. Ranks have separate batch statistics, which saves all-reduces."""
        settings = {
            "task_name": name,
            "training__epochs": 2,
            "data__synthetic__people__train_identities": 40,
            "data__synthetic__people__images_per_identity": 16,
            "data__batch_size": 8,
            "data__images_per_identity": 2,
            "evaluation__every_epochs": 100,
            "checkpoint__every_steps": 10,
            "distributed__share_batch_statistics": False,
            "reporting__every_steps": 50,
        } | changes
        path = write_tiny(self.folder, **settings)
        return path.rename(self.folder / f"{name}.yaml")

    def call(self, script, *line, here=True):
        """Run a command of jobs/."""
        return run_job_script(script, *line, folder=self.folder, environment=self.environment, here=here)

    def submit(self, *line, script="submit_search", here=True):
        """Run a command that submits jobs, and return their ids."""
        done = self.call(script, *line, here=here)
        assert done.returncode == 0, done.stderr
        return re.findall(r"^job (\S+):", done.stdout, re.MULTILINE)

    def search(self, name, *line, ranks=TWO_RANKS, **changes):
        """Submit a search and return its job id."""
        (job,) = self.submit(*ranks, "--time", "20", *line, "--config", self.recipe(name, **changes))
        return job

    def by_torchrun(self, name, **changes):
        """Run the same search as two processes on this machine, without Slurm, and return its result."""
        line = ["--gpus", "0", "--tasks", "2", "--local", "--config", self.recipe(name, **changes)]
        self.submit(*line, here=False)
        return self.result(name)

    def run(self, name):
        return self.folder / "runs" / name

    def wait_for_step(self, name, step):
        """Wait until a run has reached a step."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                progress = json.loads((self.run(name) / "progress.json").read_text())
            except OSError:
                progress = {"step": -1}
            if progress["step"] >= step:
                return
            assert time.monotonic() < end, f"{name} did not reach step {step}: {progress}"
            time.sleep(0.1)

    def finish(self, job, name):
        """Wait until a job has completed, and return the result of its run."""
        self.cluster.wait_for(job, "COMPLETED", timeout=PATIENCE)
        return self.result(name)

    def result(self, name):
        return json.loads((self.run(name) / "result.json").read_text())

    def kinds(self, name):
        return [event.kind for event in read_history(self.run(name))]


@pytest.fixture(scope="module")
def lab(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A folder for the jobs of a test module."""
    return Lab(slurm_cluster, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def undisturbed(lab):
    """The result of an uninterrupted search on this machine, without Slurm."""
    return lab.by_torchrun("undisturbed")
