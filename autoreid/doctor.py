"""python -m autoreid.doctor: find problems on this machine, or between the ranks of a job, and how to fix them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.cli import run_command
from autoreid.config import expand

_DESCRIPTION = """\
Find problems and how to fix them. Prints one line per check: ok, warn (works, but with limitations) or FAIL.

In a login shell, this machine is checked. Launched like a run, with srun or torchrun, all ranks contact each other and
check every node, the network between the nodes, each rank's GPU, and the shared folder.
"""
_EXAMPLES = """\
examples:
  python -m autoreid.doctor
  srun --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 python -m autoreid.doctor --folder /scratch/me/runs

exit status: 0 no check failed; 1 a check failed; 2 bad command line
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, print the findings and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.doctor",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=expand, default=Path("runs"), help="folder where runs are written (default: runs)")
    add(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long ranks wait for each other (default: 60)",
    )
    arguments = parser.parse_args(argv)
    # Otherwise log lines of torch's networking would hide the findings; torch reads this when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        from autoreid.diagnosis.ranks import diagnose
    except ImportError as error:
        print(f"FAIL packages: {error}; python -m pip install . in the checkout, with {sys.executable}")
        return 1
    return run_command(lambda: diagnose(arguments.folder, arguments.timeout))


if __name__ == "__main__":
    sys.exit(main())
