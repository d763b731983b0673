"""Submits a training to Slurm: python jobs/submit_train.py --nodes 2 --gpus 8 --config FILE (--help says more)."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.submit import submit_run

if __name__ == "__main__":
    sys.exit(run_command(lambda: submit_run("train", None)))
