"""python -m autoreid.doctor: what will not work here, in a login shell or in a job, and how to mend it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_DESCRIPTION = """\
Says what will not work here and how to mend it, one line a check: ok, warn (works, but not as it should) or FAIL.

In a login shell it looks at this machine. Started like a run, by srun or torchrun, it has all ranks meet, and
looks at every node, at the network between them, at each rank's GPU and at the folder that they share.
"""
_EXAMPLES = """\
examples:
  python -m autoreid.doctor
  srun --nodes 2 --ntasks-per-node 4 --gpus-per-node 4 python -m autoreid.doctor --folder /scratch/me/runs

exit status: 0 nothing fails; 1 something does; 2 bad command line
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Examines what the command line says, prints the findings and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.doctor",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs"), help="where runs are written (default: runs)")
    add("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long ranks wait for each other")
    arguments = parser.parse_args(argv)
    # What torch's networking says of itself would bury the findings; it reads this when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        from autoreid.cli import run_command
        from autoreid.diagnosis.ranks import diagnose
    except ImportError as error:
        print(f"FAIL packages: {error}; python -m pip install . in the checkout, with {sys.executable}")
        return 1
    return run_command(lambda: diagnose(arguments.folder, arguments.timeout))


if __name__ == "__main__":
    sys.exit(main())
