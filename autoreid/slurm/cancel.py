"""Cancel the jobs of runs: jobs/cancel.py."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

from autoreid.config import expand
from autoreid.errors import RunError
from autoreid.slurm.runs import find_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python jobs/cancel.py",
        description="Cancel the jobs of runs. Each run saves a checkpoint first; submit it again to resume it.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="task name, run folder, folder of a study or sweep, or job id"
    )
    parser.add_argument(
        "--output-dir", type=expand, default=Path("runs"), help="folder of the run folders (default: runs)"
    )
    options = parser.parse_args(arguments)
    for run in find_runs(options.runs, options.output_dir):
        if run.job is None or not run.is_active:
            print(f"{run.folder}: has no job in the queue (the run is {run.state})")
            continue
        try:
            subprocess.run(["scancel", run.job], check=True, capture_output=True, text=True, timeout=60)
        except subprocess.CalledProcessError as error:
            raise RunError(f"scancel {run.job}: {error.stderr.strip()}") from error
        print(f"{run.folder}: cancelled job {run.job} (was {run.state})")
    return 0
