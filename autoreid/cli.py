"""What every command does alike: errors become one line and an exit status."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

import torch
from torch import distributed as dist

from autoreid.errors import LOST_CONTACT, AutoreidError, complain

_log = logging.getLogger(__name__)

#: What to change where memory is short.
LESS_MEMORY = (
    "a larger training.accumulation, a smaller data.batch_size or more GPUs, "
    "search.activation_checkpointing=cell, search.reid_cell.partial_channels=4, training.precision=bfloat16 or a "
    "narrower network need less"
)


def run_command(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status.

    A failure is one line on the console of rank 0; the traceback goes to the rank's log, or, if the run had none
    yet and the failure is not one that the user can act on, to the console.
    """
    try:
        return command()
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from the last checkpoint")
        return 130
    except AutoreidError as error:
        _log.debug("%s", error, exc_info=error)
        complain(str(error))
        return error.exit_status
    except torch.OutOfMemoryError as error:
        _log.debug("%s", error, exc_info=error)
        complain(f"the GPU's memory is full; {LESS_MEMORY}: {str(error).splitlines()[0]}")
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
