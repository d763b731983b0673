"""A rank's log, or its job's raw output: jobs/logs.py."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from autoreid.errors import ConfigError
from autoreid.slurm.runs import Run, find_runs

_EXAMPLES = """\
examples:
  python jobs/logs.py darts_triplet
  python jobs/logs.py darts_triplet --rank 7 --follow
  python jobs/logs.py darts_triplet --raw
"""


def log_of(run: Run, rank: int, raw: bool) -> Path:
    """The file of a rank's log, or of all that its process printed.

    Raises:
        ConfigError: there is none (yet); says what there is.
    """
    if not raw:
        path = run.folder / "logs" / f"rank{rank}.log"
        there = sorted(found.name for found in path.parent.glob("rank*.log"))
    else:
        if run.job is None:
            raise ConfigError(f"{run.folder}: was not submitted as a job; leave out --raw")
        # An array's elements write beside its first one's.
        found_raw = sorted(run.folder.parent.glob(f"*/slurm/{run.job}_{rank}_log.out"))
        path = found_raw[0] if found_raw else run.folder / "slurm" / f"{run.job}_{rank}_log.out"
        there = sorted(found.name for found in path.parent.glob("*_log.out"))
    if not path.exists():
        listed = (
            ", ".join(there) if there else f"nothing yet; the run is {run.state} {run.last_reason}".strip()
        )
        raise ConfigError(f"{path}: no such log; there is {listed}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; becomes `tail`, which shows and follows files better than anything written here."""
    parser = argparse.ArgumentParser(
        prog="python jobs/logs.py",
        description="Shows the log of one of a run's ranks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="task name, run folder or job id")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="whose (default 0)")
    parser.add_argument(
        "--raw", action="store_true", help="what the job's task printed, from before its log began"
    )
    parser.add_argument("--follow", action="store_true", help="go on as it grows, until interrupted")
    parser.add_argument(
        "--lines", type=int, default=40, metavar="N", help="how many of the last (default 40)"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs"), help="where run folders are (default runs)"
    )
    options = parser.parse_args(arguments)
    (run,) = find_runs([options.run], options.output_dir)
    path = log_of(run, options.rank, options.raw)
    command = ["tail", "-n", str(options.lines), *(["-F"] if options.follow else []), str(path)]
    os.execvp("tail", command)  # noqa: S606
