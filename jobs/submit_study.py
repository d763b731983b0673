"""Submit a study, which compares a search with random networks; see python jobs/submit_study.py --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.study import main

if __name__ == "__main__":
    sys.exit(run_command(main))
