"""Show the log of a rank, or the raw output of a Slurm task: jobs/logs.py."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from autoreid.config import expand
from autoreid.errors import ConfigError
from autoreid.slurm.runs import Run, find_runs

_EXAMPLES = """\
examples:
  python jobs/logs.py darts_triplet
  python jobs/logs.py darts_triplet --rank 7 --follow
  python jobs/logs.py darts_triplet --raw
"""


def find_log(run: Run, rank: int, raw: bool) -> Path:
    """Return the path of a rank's log, or with `raw` of the file with everything that its process printed.

    Raises:
        ConfigError: the file does not exist (yet); the message lists the logs that exist.
    """
    if not raw:
        path = run.folder / "logs" / f"rank{rank}.log"
        existing = sorted(found.name for found in path.parent.glob("rank*.log"))
    else:
        if run.job is None:
            raise ConfigError(f"{run.folder}: was not submitted as a job; leave out --raw")
        # All tasks of a job array write to the folder of the first one.
        found_raw = sorted(run.folder.parent.glob(f"*/slurm/{run.job}_{rank}_log.out"))
        path = found_raw[0] if found_raw else run.folder / "slurm" / f"{run.job}_{rank}_log.out"
        existing = sorted(found.name for found in path.parent.glob("*_log.out"))
    if not path.exists():
        hint = f"existing logs: {', '.join(existing)}"
        if not existing:
            hint = f"no logs yet; the run is {run.state} {run.last_reason}".strip()
        raise ConfigError(f"{path}: log does not exist; {hint}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: replace this process by `tail`, which shows the file and follows it."""
    parser = argparse.ArgumentParser(
        prog="python jobs/logs.py",
        description="Show the log of one rank of a run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="task name, run folder or job id")
    parser.add_argument(
        "--rank", type=int, default=0, metavar="N", help="rank whose log to show (default: 0)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="show everything that the Slurm task printed, including what it printed before its log began",
    )
    parser.add_argument(
        "--follow", action="store_true", help="keep showing new lines until interrupted, as tail -F does"
    )
    parser.add_argument(
        "--lines", type=int, default=40, metavar="N", help="number of last lines to show (default: 40)"
    )
    parser.add_argument(
        "--output-dir", type=expand, default=Path("runs"), help="folder of the run folders (default: runs)"
    )
    options = parser.parse_args(arguments)
    runs = find_runs([options.run], options.output_dir)
    if len(runs) > 1:
        raise ConfigError(f"{options.run}: has {len(runs)} runs; name one of them, such as {runs[0].folder}")
    path = find_log(runs[0], options.rank, options.raw)
    command = ["tail", "-n", str(options.lines), *(["-F"] if options.follow else []), str(path)]
    signal.signal(
        signal.SIGPIPE, signal.SIG_DFL
    )  # Python ignores it: in a broken pipe, tail would print an error
    os.execvp("tail", command)  # noqa: S606
