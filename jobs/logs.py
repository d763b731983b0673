"""Show the log of a rank; see python jobs/logs.py --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.logs import main

if __name__ == "__main__":
    sys.exit(run_command(main))
