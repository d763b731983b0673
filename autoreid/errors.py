"""Errors that end a run, with their exit statuses.

0: done, or stopped to be requeued; 1: the run failed; 2: bad command line, config or data; 3: the ranks
disagree. A message is one line: what is wrong, where, and what would be right.
"""

from __future__ import annotations

import os
import sys

#: Start of the message of a run that ends because another rank has died.
LOST_CONTACT = "lost contact with another rank, see its log for the reason"


class AutoreidError(Exception):
    """An error that the user can act on; its message is one line."""

    exit_status = 1


class RunError(AutoreidError):
    """The run failed, for example because the loss is not finite or the disk is full."""


class DivergedError(RunError):
    """Gradients or embeddings are not finite; the same run would fail again."""


class ConfigError(AutoreidError):
    """The command line or the config is wrong; the message names file, key and value."""

    exit_status = 2


class DataError(AutoreidError):
    """A data set, image or genotype file is missing or broken; the message names the path."""

    exit_status = 2


class DisagreementError(AutoreidError):
    """Values that must be equal on all ranks differ; the message names the step and the ranks."""

    exit_status = 3


def complain(message: str) -> None:
    """Print a line to stderr on rank 0 only, because all ranks raise the errors that they agree on."""
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"autoreid: {message}", file=sys.stderr, flush=True)
