"""Copy the metrics of runs to Weights & Biases or MLflow, once or while they train."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from autoreid.errors import AutoreidError, complain
from autoreid.mirrors import Mirror, build_mirror
from autoreid.mirrors.content import find_run_folders, is_over
from autoreid.mirrors.update import update_mirror


def execute(options: argparse.Namespace) -> None:
    """Mirror the runs that the command line names.

    Raises:
        AutoreidError: a run could not be mirrored; the others were. With --follow, errors are printed once, and the
            updates are tried again.
    """
    logging.basicConfig(format="autoreid: %(message)s", level=logging.WARNING)
    mirror = build_mirror(options.to, options.project, options.store, options.online)
    if options.follow is None:
        errors, _ = update_all(options.runs, mirror)
        for error in errors[1:]:
            complain(str(error))
        if errors:
            raise errors[0]
    else:
        _follow(options.runs, mirror, options.follow)


def _follow(places: Sequence[Path], mirror: Mirror, seconds: float) -> None:
    printed: set[str] = set()
    while True:
        errors, all_over = update_all(places, mirror)
        for message in {str(error) for error in errors} - printed:
            complain(f"{message}; trying again every {seconds:g} seconds")
        printed |= {str(error) for error in errors}
        if all_over and not errors:
            return
        time.sleep(seconds)


def update_all(places: Sequence[Path], mirror: Mirror) -> tuple[list[AutoreidError], bool]:
    """Mirror all runs in some folders once.

    Returns:
        The errors, and whether all runs are over.
    """
    errors: list[AutoreidError] = []
    all_over = True
    for place in places:
        try:
            folders = find_run_folders(place)
        except AutoreidError as error:
            errors.append(error)
            continue
        for folder in folders:
            try:
                # Asked before the update, which then has everything of a run that is over.
                all_over &= is_over(folder)
                count = update_mirror(folder, mirror)
            except AutoreidError as error:
                errors.append(error)
            else:
                if count:
                    epochs = "1 epoch" if count == 1 else f"{count} epochs"
                    print(f"{folder}: {epochs} written to {mirror.destination}", flush=True)
    return errors, all_over
