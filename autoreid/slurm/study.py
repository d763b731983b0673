"""Submit a study as dependent jobs: the command line of jobs/submit_study.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from autoreid.errors import ConfigError
from autoreid.slurm.read_options import read_job_options
from autoreid.slurm.submit import make_parser
from autoreid.slurm.sweep import add_sweep_option
from autoreid.study import add_options, check_options, read_recipes

_EXAMPLES = """\
  python jobs/submit_study.py --search configs/darts_triplet.yaml --train configs/retrain.yaml --searches 8 \\
      --random 8 --output studies/market --plan
  python jobs/submit_study.py --search configs/darts_triplet.yaml --train configs/retrain.yaml --searches 8 \\
      --random 8 --output studies/market --gpus 4 --trainings-at-once 4

Searches get all nodes and GPUs, and each array task of the trainings gets one GPU. The files are those of
python -m autoreid.study. The same command again submits what has no result yet.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(
        "submit_study",
        "Submit a study, which compares networks that a search finds with random ones.",
        _EXAMPLES,
    )
    add_options(parser)
    parser.add_argument(
        "--plan",
        action="store_true",
        help="time a step of a search and of a training on this machine, and print the total cost",
    )
    parser.add_argument(
        "--trainings-at-once",
        type=int,
        metavar="N",
        help="number of array tasks that share the trainings (default: --array-limit, or one for each training; "
        "with --local one for all)",
    )
    add_sweep_option(
        parser, "a study compares searches of one recipe with random networks; submit a study for each value"
    )
    options = parser.parse_intermixed_args(arguments)
    check_options(options)
    if options.trainings_at_once is not None and options.trainings_at_once < 1:
        raise ConfigError(
            f"command line: --trainings-at-once {options.trainings_at_once}: must be at least 1"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/submit_study.py and return its exit status."""
    options = parse(arguments)
    shown = options.output
    options.output = shown.absolute()
    job_options = read_job_options(vars(options))
    searches, recipe = read_recipes(options)
    from autoreid.slurm.study_jobs import execute

    execute(options, job_options, searches, recipe, f"python jobs/status.py {shown}")
    return 0
