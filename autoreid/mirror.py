"""python -m autoreid.mirror: copy the metrics of runs to Weights & Biases or MLflow."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from autoreid.cli import run_command
from autoreid.config import expand
from autoreid.errors import ConfigError

_DESCRIPTION = """\
Copy the metrics of runs to Weights & Biases or MLflow: each line of metrics.jsonl at its step, the config, the result,
the environment and the pictures of a search's genotypes.

A call writes what the last one did not, so it can be repeated while a run trains, and after it was resumed. The file
mirrors.json in the run folder says how much of the run each store has. Nothing is sent over a network unless --online
or the URI of a server is given.
"""
_EXAMPLES = """\
examples:
  python -m autoreid.mirror runs --to mlflow
  python -m autoreid.mirror runs/darts_triplet --to mlflow --store http://mlflow.example.org:5000 --follow
  python -m autoreid.mirror runs --to wandb --project market && wandb sync wandb/offline-run-*

exit status: 0 everything is mirrored; 1 the store cannot be written; 2 the command line or a run folder is wrong, or
the package of the tracker is missing
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raises ConfigError if options contradict each other."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.mirror",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=expand,
        metavar="RUN",
        help="run folder, or a folder with run folders below it",
    )
    parser.add_argument("--to", choices=("wandb", "mlflow"), required=True, help="where to copy them")
    parser.add_argument(
        "--project",
        default="autoreid",
        metavar="NAME",
        help="project, or experiment of MLflow (default: autoreid)",
    )
    parser.add_argument(
        "--store",
        help="URI of MLflow's tracking store (default: sqlite:///mlflow.db), or the folder in which W&B's folder "
        "wandb is created (default: the current one)",
    )
    parser.add_argument("--online", action="store_true", help="upload to W&B at once; needs `wandb login`")
    parser.add_argument(
        "--follow",
        nargs="?",
        type=float,
        const=300.0,
        metavar="SECONDS",
        help="repeat until all runs have finished or failed, every SECONDS seconds (default: 300)",
    )
    options = parser.parse_args(arguments)
    if options.online and options.to != "wandb":
        raise ConfigError("command line: --online is for --to wandb; for MLflow, give the server as --store")
    if options.to == "wandb" and "://" in (options.store or ""):
        raise ConfigError(f"command line: --store {options.store}: must be a folder with --to wandb")
    if options.follow is not None and not 1 <= options.follow < math.inf:
        raise ConfigError(
            f"command line: --follow {options.follow:g}: must be a finite number of at least 1 second"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        from autoreid.commands.mirror import execute

        execute(options)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
