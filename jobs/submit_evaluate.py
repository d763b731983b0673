"""Submit an evaluation to Slurm; see python jobs/submit_evaluate.py --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.evaluation import main

if __name__ == "__main__":
    sys.exit(run_command(main))
