"""A run whose NCCL peer is lost ends with a line that says so.

Where a peer is gone, NCCL's kernels wait on the GPU, and the main thread for them. Once torch's watchdog has seen
that, after the process group's timeout or because a connection broke, it aborts the process; a minute later in
torch 2.7 and newer, so that other ranks can write down what they were doing. A thread asks for its findings and ends
the process first. torch 2.6 cannot be asked: there the watchdog's abort remains.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist

from autoreid.errors import LOST_CONTACT, complain

_log = logging.getLogger(__name__)

#: Seconds between two questions, which touch neither the GPU nor the network.
INTERVAL = 0.5


@contextmanager
def watching_nccl() -> Iterator[None]:
    """Ends the process with a line and status 1 if NCCL fails during the `with` block; needs a process group."""
    assert dist.group.WORLD is not None  # noqa: S101
    backend = dist.group.WORLD._get_backend(torch.device("cuda"))
    left = threading.Event()
    if hasattr(backend, "get_error"):
        threading.Thread(target=watch, args=(backend, left), daemon=True).start()
    try:
        yield
    finally:
        left.set()


def watch(backend: Any, left: threading.Event) -> None:
    """Waits until the block is left, or ends the process because of an error.

    Args:
        backend: says in `get_error()` what its watchdog has found.
        left: set when the block is.
    """
    while not left.wait(INTERVAL):
        error = backend.get_error()
        if error.name != "SUCCESS":
            message = f"{LOST_CONTACT}: NCCL's watchdog found {error.name}"
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            _log.debug("%s, here:\n%s", message, "".join(traceback.format_stack(frame)))
            complain(message)
            # The main thread waits for a kernel that never ends.
            os._exit(1)
