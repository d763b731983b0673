"""The errors that end a run, each with the exit status it ends with.

0 is done, or stopped for a requeue; 1 the run failed; 2 a bad command line, config or data; 3 the ranks
disagree. A message is one line: what is wrong, where, and what would be right.
"""

from __future__ import annotations

import os
import sys

#: How the line begins that ends a run whose peer is gone.
LOST_CONTACT = "lost contact with another rank, whose log says why"


class AutoreidError(Exception):
    """A failure that the user can act on; its message is one line."""

    exit_status = 1


class RunError(AutoreidError):
    """The run itself failed: a loss that is not finite, a disk that is full."""


class ConfigError(AutoreidError):
    """The command line or the config is wrong; names file, key and value."""

    exit_status = 2


class DataError(AutoreidError):
    """A data set, image or genotype file is missing or broken; names the path."""

    exit_status = 2


class DisagreementError(AutoreidError):
    """Ranks that must hold equal values do not; names the step and the ranks."""

    exit_status = 3


def complain(message: str) -> None:
    """Puts a line on the console, if this is rank 0: errors that ranks agree on are raised by all of them."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"autoreid: {message}", file=sys.stderr, flush=True)
