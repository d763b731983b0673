"""Settings of all tests, before torch is imported anywhere, and the fixtures that several files share."""

import os
from collections.abc import Iterable

import pytest

from tests.slurm_cluster import faulty_cluster, slurm_cluster

__all__ = ["faulty_cluster", "slurm_cluster"]

# Tests run side by side: each process that took every core would wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the cluster's tests first: they wait more than they compute, and others run beside them."""

    def needs_no_cluster(item: pytest.Item) -> bool:
        fixtures: Iterable[str] = getattr(item, "fixturenames", ())
        return "slurm_cluster" not in fixtures

    items.sort(key=needs_no_cluster)
