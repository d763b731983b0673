"""Settings of all tests, which must be made before torch is imported, and fixtures of several test modules."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.helpers import DRAWN_PEOPLE
from tests.helpers.slurm_cluster import faulty_cluster, slurm_cluster

__all__ = ["faulty_cluster", "slurm_cluster"]

# Tests run in several processes: if each of them used all cores, they would slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(params=["cpu", "gpu"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test twice on a CPU: with the implementations of layers for CPUs and with those for GPUs."""
    from autoreid.layers.cpu import gpu_forms

    with gpu_forms() if request.param == "gpu" else nullcontext():
        yield request.param


#: The slowest modules, which run first, in this order. A module runs in one process: if a slow one ran last, the other
#: processes would be idle. Modules with a Slurm cluster mostly wait, so others can run at the same time.
LONGEST = (
    "slurm_faults",
    "slurm",
    "readme",
    "search_cost",
    "alphas_see",
    "compile",
    "resume",
    "gpu_check",
    "memory",
    "submit",
    "accumulation",
    "launches",
    "study",
    "search_ranks",
    "submit_study",
    "deterministic",
    "train",
    "mgn",
    "class_memory",
    "evaluate",
    "baselines",
)


def pytest_configure(config: pytest.Config) -> None:
    """Make a folder for synthetic people, which all processes of the tests share."""
    if DRAWN_PEOPLE not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="autoreid-people-")
        os.environ[DRAWN_PEOPLE] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need a cluster, and move the slowest modules to the front."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    for item in items:
        if "slurm_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
