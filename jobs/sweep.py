"""Show the results of a sweep; see python jobs/sweep.py --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.show_sweep import main

if __name__ == "__main__":
    sys.exit(run_command(main))
