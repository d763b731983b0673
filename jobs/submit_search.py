"""Submit a search to Slurm; see python jobs/submit_search.py --help."""

import sys

from autoreid.cli import run_command
from autoreid.slurm.submit import submit_run

if __name__ == "__main__":
    sys.exit(run_command(lambda: submit_run("search", None)))
