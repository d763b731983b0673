"""Cancel the jobs of runs; see python jobs/cancel.py --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.cancel import main

if __name__ == "__main__":
    sys.exit(run_command(main))
