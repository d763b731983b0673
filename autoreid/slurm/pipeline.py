"""Submit a search and all that follows it as dependent jobs: the command line of jobs/submit_pipeline.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from autoreid.config import expand
from autoreid.errors import ConfigError
from autoreid.named_paths import named_paths
from autoreid.slurm.pipeline_stages import Pipeline
from autoreid.slurm.read_options import read_job_options
from autoreid.slurm.stages import submit_stages
from autoreid.slurm.submit import is_dry_run, make_parser
from autoreid.slurm.sweep import add_sweep_option

_EXAMPLES = """\
  python jobs/submit_pipeline.py --gpus 8 --seeds 0 1 2 --config configs/darts_triplet.yaml \\
      --train-config configs/retrain.yaml --data data/market1501 data/dukemtmc
  python jobs/submit_pipeline.py --gpus 0 --local --seeds 0 --config configs/quickstart.yaml \\
      --train-config configs/quickstart_train.yaml
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser(
        "submit_pipeline",
        "Submit searches, and the jobs that derive, train and evaluate the best network that they find.",
        _EXAMPLES,
    )
    _add_options(parser)
    add_sweep_option(
        parser,
        "its tournament compares searches of one recipe; sweep with jobs/submit_search.py, and choose among the found "
        "networks with python -m autoreid.tournament",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.random < 0:
        raise ConfigError(f"command line: --random {options.random}: must be at least 0")
    return options


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=expand, required=True, metavar="FILE", help="recipe of the search")
    add(
        "--train-config",
        type=expand,
        required=True,
        metavar="FILE",
        help="recipe of the training of the found network",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="run one search for each seed, as a job array; a tournament chooses one",
    )
    add(
        "--random",
        type=int,
        default=0,
        metavar="N",
        help="add N random networks of the same sizes to the tournament, as a control; one of them may win",
    )
    add("--data", type=expand, nargs="+", default=[], metavar="FOLDER", help="data sets to evaluate on")
    add("--name", help="task name of the training (default: the task name of the search, with _found)")
    add(
        "--train",
        action="append",
        default=[],
        metavar="section.key=value",
        help="value that overrides the training recipe's; can be repeated",
    )
    add("overrides", nargs="*", metavar="section.key=value", help="values that override the search recipe's")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/submit_pipeline.py and return its exit status."""
    options = parse(arguments)
    job_options = read_job_options(vars(options))
    pipeline = Pipeline.plan(options, job_options)
    from autoreid.commands.pipeline import check, check_targets

    writes = not is_dry_run(options)
    check([run.config for run in pipeline.searches], job_options.ranks, pipeline.recipe, writes)
    if writes:
        # Not before: synthetic people may have been generated just now.
        check_targets(named_paths("--data", [str(data) for data in options.data]), pipeline.recipe)
    submit_stages(list(pipeline.stages()), options, pipeline.freeze, "python jobs/status.py")
    return 0
