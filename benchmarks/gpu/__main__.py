"""Run one part of scripts/gpu_check.sh: python -m benchmarks.gpu PART --results FILE [--scratch FOLDER] [--dry-run].

`versions` writes a description of the machine, or prints in one line why nothing can be measured on it. `summary`
prints the table of a results file.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path

from benchmarks.gpu import summary

#: The parts, the most important ones first; scripts/gpu_check.sh has their time limits.
PARTS = (
    "product_tests",
    "supernet",
    "steps",
    "determinism",
    "ranks",
    "memory",
    "ranking",
    "precision",
    "nets",
    "compiled",
    "ceilings",
    "micros",
)


def main() -> int:
    """Run one part and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("part", choices=("versions", *PARTS, "summary"))
    add(
        "--results",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to which one line of JSON is appended for each case",
    )
    add("--scratch", type=Path, metavar="FOLDER", help="folder for data sets and runs, which parts may share")
    add(
        "--seconds",
        type=float,
        default=math.inf,
        help="time limit; cases that do not fit into it are skipped",
    )
    add("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    arguments = parser.parse_args()
    if arguments.part == "summary":
        return summary.main(arguments.results)
    try:
        from benchmarks.gpu.harness import Check

        # The first part imports all parts, to find missing packages early.
        needed = (*PARTS, "versions") if arguments.part == "versions" else (arguments.part,)
        *_, module = (importlib.import_module(f"benchmarks.gpu.{name}") for name in needed)
    except ModuleNotFoundError as error:
        advice = "run `python -m pip install --editable '.[dev]'` in the checkout"
        print(f"gpu_check: {sys.executable} has no module {error.name}; {advice}", file=sys.stderr)
        return 2
    if problem := Check.problem(arguments.dry_run):
        print(f"gpu_check: {problem}", file=sys.stderr)
        return 2
    check = Check(arguments.part, arguments.results, arguments.scratch, arguments.seconds, arguments.dry_run)
    check.run(module.cases(check))
    return 0


if __name__ == "__main__":
    sys.exit(main())
