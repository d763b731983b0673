"""End a process whose NCCL peer is lost, with a one-line error.

If a peer is lost, NCCL's kernels wait on the GPU, and the main thread waits for them. PyTorch's NCCL watchdog notices
this after the process group's timeout, or when a connection breaks, and aborts the process; torch 2.7 and newer first
wait for a minute, so that other ranks can dump their state. A thread here polls the watchdog and exits first. In
torch 2.6 the watchdog cannot be polled: there the process ends by its abort.
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

#: Seconds between two polls, which use neither the GPU nor the network.
INTERVAL = 0.5


@contextmanager
def watching_nccl() -> Iterator[None]:
    """Exit with a one-line error and status 1 if NCCL fails during the `with` block; requires a process group."""
    assert dist.group.WORLD is not None  # noqa: S101
    backend = dist.group.WORLD._get_backend(torch.device("cuda"))
    done = threading.Event()
    if hasattr(backend, "get_error"):
        threading.Thread(target=watch, args=(backend, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def watch(backend: Any, done: threading.Event) -> None:
    """Poll a backend until `done` is set, and exit if it reports an error.

    Args:
        backend: an NCCL process group, whose `get_error()` returns what its watchdog has found.
        done: event that ends the polling.
    """
    while not done.wait(INTERVAL):
        error = backend.get_error()
        if error.name != "SUCCESS":
            message = f"{LOST_CONTACT}: NCCL's watchdog reports {error.name}"
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            _log.debug("%s; stack of the main thread:\n%s", message, "".join(traceback.format_stack(frame)))
            complain(message)
            # A regular exit is impossible: the main thread waits for a kernel that never ends.
            os._exit(1)
