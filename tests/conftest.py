"""Settings of all tests, before torch is imported anywhere, and the fixtures that several files share."""

import os

import pytest

from tests.helpers.slurm_cluster import faulty_cluster, slurm_cluster

__all__ = ["faulty_cluster", "slurm_cluster"]

# Tests run side by side: each process that took every core would wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts modules with tests on a cluster first: they wait more than they compute, and others run beside them."""
    waiting = {item.path for item in items if "slurm_cluster" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in waiting)
