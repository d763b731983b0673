"""Show the states of runs as a table: jobs/status.py."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoreid.config import expand
from autoreid.reporting.text_table import as_text
from autoreid.slurm.runs import Run, find_runs

#: Minimum seconds between two queries, to limit the load on Slurm's controller.
MIN_WATCH_SECONDS = 5

_EXAMPLES = """\
examples:
  python jobs/status.py
  python jobs/status.py darts_triplet 4711
  python jobs/status.py studies/quickstart
  python jobs/status.py --watch 60
"""


def describe(run: Run) -> dict[str, Any]:
    """Return a run as a JSON object; values that are not known are null."""
    progress = run.progress
    return {
        "run": run.name,
        "folder": str(run.folder),
        "job": run.job,
        "state": run.state,
        "restarts": run.restarts,
        "reason": run.last_reason,
        "job_time_left": run.slurm.time_left if run.is_active and run.slurm else None,
        **{key: progress.get(key) for key in _FIGURES},
    }


_FIGURES = ("task", "epoch", "epochs", "step", "steps", "map", "images_per_second", "seconds_left")
_COLUMNS = ("run", "task", "job", "state", "epoch", "step", "mAP", "images/s", "time left", "restarts", "why")


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the descriptions of runs as a table with a header line."""
    return as_text([_COLUMNS, *(_cells(row) for row in rows)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def fraction(part: str, whole: str) -> str:
        return "" if row[part] is None else f"{row[part]}/{row[whole]}"

    left = row["seconds_left"]
    is_over = row["state"] in ("finished", "failed", "crashed")
    return (
        row["run"],
        row["task"] or "",
        row["job"] or "",
        row["state"],
        fraction("epoch", "epochs"),
        fraction("step", "steps"),
        "" if row["map"] is None else f"{row['map']:.1%}",
        "" if not row["images_per_second"] else f"{row['images_per_second']:.1f}",
        "" if left is None or is_over else str(datetime.timedelta(seconds=round(left))),
        str(row["restarts"]),
        row["reason"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python jobs/status.py",
        description="Show job, state, epoch, step, mAP, speed, remaining time and restarts of runs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="task name, run folder, folder of a study or sweep, or job id (default: all)",
    )
    parser.add_argument(
        "--output-dir", type=expand, default=Path("runs"), help="folder of the run folders (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument(
        "--watch",
        type=int,
        metavar="SECONDS",
        help=f"repeat every SECONDS seconds (at least {MIN_WATCH_SECONDS})",
    )
    options = parser.parse_args(arguments)
    while True:
        rows = [describe(run) for run in find_runs(options.runs, options.output_dir)]
        print(json.dumps(rows, indent=1) if options.json else as_table(rows), flush=True)
        if options.watch is None:
            return 0
        time.sleep(max(options.watch, MIN_WATCH_SECONDS))
