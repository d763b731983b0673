"""Show the results of a sweep: the command line of jobs/sweep.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from autoreid.config import expand
from autoreid.sweeps.sweep import read_sweep

_DESCRIPTION = """\
Show the runs of a sweep: swept values, state, mAP, rank-1 and time, and the means over seeds. The command can be
repeated while the sweep is running. It writes the table to table.md and table.csv in the folder of the sweep."""
_EXAMPLES = """\
examples:
  python jobs/sweep.py runs/darts_triplet
  python jobs/sweep.py runs/darts_triplet --json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python jobs/sweep.py",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", type=expand, metavar="FOLDER", help="folder of the sweep, such as runs/NAME"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of tables")
    options = parser.parse_args(arguments)
    sweep = read_sweep(options.folder)
    from autoreid.slurm.sweep_results import show_results

    show_results(sweep, options.json)
    return 0
