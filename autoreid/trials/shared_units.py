"""Distribute units of work over the processes that use the same folder."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from autoreid.distributed import StopSignal
from autoreid.files import make_folder

_log = logging.getLogger(__name__)
#: Seconds between two looks at units that other processes work on.
_POLL_SECONDS = 0.5


class Unit(NamedTuple):
    """A unit of work, such as a trial.

    Attributes:
        name: unique among the units of a folder; the name of its lock.
        is_done: returns whether its result exists.
        work: does the unit. It may return early if a stop signal arrives, and is then called again by a later start.
    """

    name: str
    is_done: Callable[[], bool]
    work: Callable[[], None]


@contextmanager
def claim(lock: Path, wait: bool = False) -> Iterator[bool]:
    """Lock a file for the length of a `with` block; yields whether this process has the lock.

    The operating system releases the lock when the process ends, however it ends. On a file system without locks every
    process gets it: work may then be done twice, but results stay valid.

    Args:
        wait: wait until the lock is free.
    """
    with lock.open("a") as file:
        mine = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            mine = False
        except OSError as error:
            _log.warning("%s: cannot be locked: %s", lock, error.strerror)
        yield mine


def share_units(units: Sequence[Unit], folder: Path, stop: StopSignal, wait: bool = True) -> bool:
    """Do all units that are not done, in order, except those that other processes are working on.

    Args:
        folder: where the locks are; all processes use the same one.
        wait: wait for the units of other processes, and do those that they leave undone.

    Returns:
        Whether all units are done. If not, a stop signal has arrived, or other processes are working on the others.
    """
    make_folder(folder, "choose another --output")
    left, waiting = list(units), False
    while left:
        busy: list[Unit] = []
        for unit in left:
            if unit.is_done():
                continue
            if stop.received:
                return False
            with claim(folder / f"{unit.name}.lock") as mine:
                if not mine:
                    busy.append(unit)
                elif not unit.is_done():  # another process may have done it before the lock was free
                    unit.work()
                    waiting = False
        left = [unit for unit in left if not unit.is_done()]
        if stop.received and left:
            return False
        if busy and len(busy) == len(left):
            if not wait:
                return False
            if not waiting:
                _log.info("waiting for other processes: %s", ", ".join(unit.name for unit in busy))
            waiting = True
            time.sleep(_POLL_SECONDS)
    return True
