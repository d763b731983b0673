"""Submits an evaluation to Slurm: python jobs/submit_evaluate.py --gpus 4 -- --checkpoint ... (--help says more)."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.evaluation import main

if __name__ == "__main__":
    sys.exit(run_command(main))
