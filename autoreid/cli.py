"""Error handling of all commands: an error becomes one line and an exit status."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Callable

import torch
from torch import distributed as dist

from autoreid.errors import LOST_CONTACT, AutoreidError, complain

_log = logging.getLogger(__name__)

#: How to reduce memory use.
LESS_MEMORY = (
    "to need less memory, use a larger training.accumulation, a smaller data.batch_size, more GPUs, "
    "search.activation_checkpointing=cell, search.reid_cell.partial_channels=4, training.precision=bfloat16 or a "
    "narrower network"
)


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status.

    An error is printed as one line on rank 0. The traceback goes to the rank's log; if logging has not started
    and the error is not an `AutoreidError`, it is printed.
    """
    _print_any_character()
    try:
        return command()
    except KeyboardInterrupt:
        complain("interrupted; run the same command again to resume from the last checkpoint")
        return 130
    except AutoreidError as error:
        _log.debug("%s", error, exc_info=error)
        complain(str(error))
        return error.exit_status
    except torch.OutOfMemoryError as error:
        _log.debug("%s", error, exc_info=error)
        complain(f"out of GPU memory; {LESS_MEMORY}: {str(error).splitlines()[0]}")
        return 1
    except Exception as error:
        _log.debug("%s", error, exc_info=error)
        first = (str(error).splitlines() or [""])[0]
        if isinstance(error, dist.DistBackendError) or "gloo" in first:
            first = f"{LOST_CONTACT}: {first}"
        complain(f"{type(error).__name__}: {first}")
        if not logging.getLogger("autoreid").handlers:
            traceback.print_exc()
        return 1


def _print_any_character() -> None:
    """Make stdout write characters that the locale's encoding does not have as escapes instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
