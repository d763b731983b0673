"""Error handling of all commands: an error becomes one line and an exit status.

A command is two modules. The command line, such as `autoreid.train`, parses and checks its arguments and config; its
`main` then imports the work, such as `autoreid.commands.train`, which may need PyTorch. Importing PyTorch takes
seconds, which help, printed configs and mistakes in them do not wait for.
"""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable

from autoreid.errors import LOST_CONTACT, AutoreidError, complain, has_log

_log = logging.getLogger(__name__)
#: Exit status of a program that SIGPIPE has ended, as shells report it.
_BROKEN_PIPE = 141

#: How to reduce memory use.
LESS_MEMORY = (
    "to need less memory, use a larger training.accumulation, a smaller data.batch_size, more GPUs, "
    "search.activation_checkpointing=cell, search.reid_cell.partial_channels=4, training.precision=bfloat16 or a "
    "narrower network"
)


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status.

    An error is printed as one line on rank 0, and on any rank that has no log yet. The traceback goes to the rank's
    log; if logging has not started and the error is not an `AutoreidError`, it is printed. If the reader of the
    output has gone, as in `... | head`, the command ends silently.
    """
    _print_any_character()
    try:
        try:
            return _run_command(command)
        finally:
            if sys.stdout is not None:  # None if the shell has closed it, as in `>&-`
                sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    except OSError as error:
        _drop_output()
        complain(f"standard output: cannot write: {error.strerror}")
        return 1


def _run_command(command: Callable[[], int]) -> int:
    try:
        return command()
    except KeyboardInterrupt:
        complain("interrupted; run the same command again to resume from the last checkpoint")
        return 130
    except AutoreidError as error:
        _log.debug("%s", error, exc_info=error)
        complain(str(error), on_every_rank=not has_log() and not error.is_reported)
        return error.exit_status
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise
        _log.debug("%s", error, exc_info=error)
        complain(describe(error), on_every_rank=not has_log())
        if not has_log() and not _is(error, "OutOfMemoryError"):
            traceback.print_exc()
        return 1


def _drop_output() -> None:
    """Discard what was not written yet, because Python flushes again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_any_character() -> None:
    """Make stdout write characters that the locale's encoding does not have as escapes instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, ValueError):  # it is no file, or closed
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def describe(error: Exception) -> str:
    """Return an error as one line, with the remedy where there is a known one."""
    if isinstance(error, AutoreidError):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    if _is(error, "OutOfMemoryError"):
        return f"out of GPU memory; {LESS_MEMORY}: {first}"
    if _is(error, "DistBackendError") or "gloo" in first:
        first = f"{LOST_CONTACT}: {first}"
    return f"{type(error).__name__}: {first}"


def _is(error: Exception, name: str) -> bool:
    """Return whether an error is of a class of PyTorch, which is only imported once a command needs it."""
    return any(kind.__name__ == name and kind.__module__.startswith("torch") for kind in type(error).__mro__)
