"""Show the states of runs; see python jobs/status.py --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.status import main

if __name__ == "__main__":
    sys.exit(run_command(main))
