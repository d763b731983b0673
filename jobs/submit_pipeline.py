"""Submit searches and the jobs that derive, train and evaluate the best network; see --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.pipeline import main

if __name__ == "__main__":
    sys.exit(run_command(main))
