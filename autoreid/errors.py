"""Errors that end a run, with their exit statuses.

0: done, or stopped to be requeued; 1: the run failed; 2: bad command line, config or data; 3: the ranks
disagree. A message is one line: what is wrong, where, and what would be right.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: Start of the message of a run that ends because another rank has died.
LOST_CONTACT = "lost contact with another rank, see its log for the reason"


class AutoreidError(Exception):
    """An error that the user can act on; its message is one line.

    Attributes:
        is_reported: whether it has been printed, here or by another rank.
    """

    exit_status = 1
    is_reported = False


class RunError(AutoreidError):
    """The run failed, for example because the loss is not finite or the disk is full."""


class PeerError(RunError):
    """Another rank has failed or cannot be reached; a restart may help."""


class StoppedError(AutoreidError):
    """A stop signal arrived while this rank waited for the others to start. Nothing is lost.

    Attributes:
        signal: name of the signal.
    """

    exit_status = 0

    def __init__(self, signal: str, what: str) -> None:
        super().__init__(f"stopped by {signal} while waiting for {what}")
        self.signal = signal


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


def launched_rank() -> int:
    """Return the rank of this process as set by its launcher, which needs no process group; 0 without a launcher."""
    text = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    return int(text) if text.isdecimal() else 0


def has_log() -> bool:
    """Return whether the log of this process is open."""
    return bool(logging.getLogger("autoreid").handlers)


def complain(message: str, on_every_rank: bool = False) -> None:
    """Print a line to stderr on rank 0, which reports the errors that all ranks raise.

    Args:
        on_every_rank: whether to print it on another rank, too, with the rank and its node.
    """
    rank = launched_rank()
    if rank and on_every_rank:
        message = f"rank {rank} on {platform.node()}: {message}"
    if not rank or on_every_rank:
        print(f"autoreid: {message}", file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def named(what: str) -> Iterator[None]:
    """Put the name of what is worked on in front of the message of an error."""
    try:
        yield
    except AutoreidError as error:
        renamed = type(error)(f"{what}: {error}")
        renamed.is_reported = error.is_reported
        raise renamed from error
