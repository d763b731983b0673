"""Settings of all tests, before torch is imported anywhere, and the fixtures that several files share."""

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.helpers.slurm_cluster import faulty_cluster, slurm_cluster

__all__ = ["faulty_cluster", "slurm_cluster"]

# Tests run side by side: each process that took every core would wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(params=["cpu", "gpu"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test twice on a CPU: with the implementations of layers for CPUs and with those for GPUs."""
    from autoreid.layers.cpu import gpu_forms

    with gpu_forms() if request.param == "gpu" else nullcontext():
        yield request.param


#: Modules that take longest, in this order. A module runs in one process: a long one that starts last leaves the
#: other processes without work. Those on a cluster wait more than they compute, and others run beside them.
LONGEST = (
    "slurm_faults",
    "slurm",
    "readme",
    "gpu_check",
    "compile",
    "resume",
    "submit",
    "memory",
    "train",
    "study",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that need a cluster, and puts the modules that take longest first."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    for item in items:
        if "slurm_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
