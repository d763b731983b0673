"""Settings of all tests, before torch is imported anywhere."""

import os

# Tests run side by side: each process that took every core would wait for the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
