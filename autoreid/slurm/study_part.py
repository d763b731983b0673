"""python -m autoreid.slurm.study_part: what the jobs of jobs/submit_study.py do after the searches."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autoreid.cli import run_command
from autoreid.study import add_options, check_options, read_recipes


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.slurm.study_part",
        description="Run a share of the trainings of a study, or write its table.",
    )
    part = parser.add_mutually_exclusive_group(required=True)
    part.add_argument(
        "--share", type=int, nargs=2, metavar=("I", "N"), help="run share I of N; I begins at 0"
    )
    part.add_argument("--table", action="store_true", help="write study.json and the pictures")
    add_options(parser)
    options = parser.parse_intermixed_args(arguments)
    check_options(options)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        searches, recipe = read_recipes(options)
        from autoreid.slurm.study_shares import execute

        execute(options, searches, recipe)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
