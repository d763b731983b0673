"""What the jobs of a study do after the searches: shares of the trainings, and the table."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoreid.config import Config
from autoreid.distributed import StopSignal
from autoreid.reporting.history import record
from autoreid.reporting.logs import start_logging
from autoreid.reporting.run_folder import RunFolder
from autoreid.reporting.run_record import recorded_end
from autoreid.trials.alone import single_process
from autoreid.trials.runner import TrialRunner
from autoreid.trials.study import Study
from autoreid.trials.study_results import finish
from autoreid.trials.trial import Trial
from autoreid.trials.trial_file import TrialFile

_log = logging.getLogger(__name__)


def execute(options: argparse.Namespace, searches: Mapping[str, Config], recipe: Config) -> None:
    """Run a share of the trainings of a study, or write its table."""
    study = Study(options.output, searches, recipe, options.random)
    if options.share:
        run_share(study, *options.share)
    else:
        write_table(study)


def share_folder(study: Path, share: int) -> Path:
    """Return the run folder of a share of the trainings; it is next to those of the searches."""
    return study / "runs" / f"trainings{share}"


def share_names(study: Study, share: int, shares: int) -> list[str]:
    """Return the names of the trainings in a share; found and random networks are spread evenly."""
    return study.trial_names[share::shares]


def finished_names(study: Study, names: Sequence[str]) -> set[str]:
    """Return which trainings have a result."""
    results = TrialFile(study.folder).read()
    if not results:  # computing the keys of trainings takes a while
        return set()
    return {name for name, trial in study.trials(names).items() if trial.key in results}


class ShareProgress:
    """Writes progress.json of a share, for jobs/status.py: its steps are trainings."""

    def __init__(self, folder: RunFolder, study: Study, trials: Mapping[str, Trial]) -> None:
        self.folder, self.study, self.trials = folder, study, trials
        self.began, self.done_before = time.monotonic(), self._done()

    def _done(self) -> int:
        results = TrialFile(self.study.folder).read()
        return sum(trial.key in results for trial in self.trials.values())

    def write(self) -> None:
        """Write the number of finished trainings, and the expected time for the others."""
        done, count = self._done(), len(self.trials)
        new = done - self.done_before
        left = (count - done) * (time.monotonic() - self.began) / new if new else None
        self.folder.write_progress({"task": "trainings", "step": done, "steps": count, "seconds_left": left})


def run_share(study: Study, share: int, shares: int) -> None:
    """Run the trainings of a share that have no result, except those whose search has not finished.

    The history of the share's run folder says how it ended, and with it whether the job is to be requeued.

    Raises:
        AutoreidError: the trainings cannot be run. A training that diverges is a result, not an error.
    """
    folder = RunFolder(share_folder(study.folder, share))
    folder.create()
    with StopSignal() as stop, folder.lock(), recorded_end(folder.root):
        start_logging(folder.logs, 0)
        with single_process(study.recipe.distributed, "a share of trainings") as world:
            trials = study.trials(share_names(study, share, shares))
            # Without waiting: what another process is running is that process's to finish, however long it takes.
            runner = TrialRunner.open(study.folder, study.recipe, world, stop, wait=False)
            record(folder.root, "started", runner.steps_done(trials.values()))
            progress = ShareProgress(folder, study, trials)
            progress.write()
            _log.info("share %d of %d: %s", share + 1, shares, ", ".join(trials) or "no trainings")
            results = runner.run(trials, progress.write)
            stopped = results is None and stop.received
            steps = runner.steps_done(trials.values())
            record(folder.root, "stopped" if stopped else "finished", steps, stopped or "")


def write_table(study: Study) -> None:
    """Write study.json and the pictures from the results that exist, and print the table.

    Raises:
        RunError: results are missing; names them.
    """
    results = TrialFile(study.folder).read()
    trials = study.trials(study.trial_names)
    finish(study, {name: results[trial.key] for name, trial in trials.items() if trial.key in results})
