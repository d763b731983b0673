"""Submit an evaluation: the command line of jobs/submit_evaluate.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.errors import ConfigError
from autoreid.evaluate import parse
from autoreid.slurm.executor import JobExecutor, check_log_folder
from autoreid.slurm.queue import require_slurm
from autoreid.slurm.read_options import read_job_options
from autoreid.slurm.submit import announce, make_parser, run_locally, test_only
from autoreid.slurm.sweep import add_sweep_option
from autoreid.slurm.tasks import PackageCommand

_EXAMPLES = """\
  python jobs/submit_evaluate.py --gpus 4 -- --checkpoint runs/retrain --data data/msmt17 --output runs/on_msmt17
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = make_parser(
        "submit_evaluate",
        "Submit an evaluation. Arguments after -- are passed to python -m autoreid.evaluate.",
        _EXAMPLES,
    )
    add_sweep_option(parser, "an evaluation has no config; several --checkpoint and --data make a table")
    options = parser.parse_args(given[:cut])
    job_options = read_job_options(vars(options))
    evaluation = parse(given[cut + 1 :])
    if evaluation.output is None:
        raise ConfigError("--output: required in a job; give a folder for the results, after --")
    from autoreid.commands.evaluate import check

    check(evaluation)
    output: Path = evaluation.output.absolute()
    command = PackageCommand("evaluate", given[cut + 1 :], Path.cwd())
    if not options.local:
        check_log_folder(output)
    executor = JobExecutor(job_options, output / "slurm", output.name)
    if options.dry_run:
        print(executor.script())
    elif options.test_only:
        test_only(executor.script())
    elif options.local:
        run_locally(command, job_options.ranks)
    else:
        require_slurm()
        (job,) = executor.launch([command])
        announce(job, output, executor.folder, job_options, "evaluation")
    return 0
