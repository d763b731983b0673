"""Settings of all tests, before torch is imported anywhere, and the fixtures that several files share."""

import os

from tests.slurm_cluster import faulty_cluster, slurm_cluster

__all__ = ["faulty_cluster", "slurm_cluster"]

# Tests run side by side: each process that took every core would wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
