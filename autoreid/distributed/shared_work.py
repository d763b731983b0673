"""Let some ranks work while the others wait, without running into the process group's timeout."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

from autoreid.distributed.collectives import gather_objects
from autoreid.errors import AutoreidError, RunError

Anything = TypeVar("Anything")


def work_while_others_wait(
    work: Generator[None, None, Anything] | None, seconds: float = 5.0
) -> Anything | None:
    """Do the work of this rank, if any, and return its result when all ranks have finished.

    The ranks communicate regularly, so that no rank waits longer than the process group's timeout, unless a single
    piece of work takes longer.

    Args:
        work: generator that yields between pieces of work and returns the result; None to only wait.
        seconds: approximate time between two communications.

    Raises:
        AutoreidError: on every rank, the error of the first rank that failed. Errors of other types become a RunError.
    """
    result: Anything | None = None
    error: AutoreidError | None = None
    while True:
        if work is not None:
            try:
                _work_for(work, seconds)
            except StopIteration as end:
                result, work = end.value, None
            except AutoreidError as known:
                error, work = known, None
            except Exception as unknown:
                error, work = RunError(f"a rank failed: {type(unknown).__name__}: {unknown}"), None
        states = gather_objects((work is not None, error))
        for _, failure in states:
            if failure is not None:
                raise failure
        if not any(busy for busy, _ in states):
            return result


def _work_for(work: Generator[None, None, Any], seconds: float) -> None:
    """Do at least one piece of work, and more until `seconds` have passed; raise StopIteration at the end."""
    until = time.monotonic() + seconds
    next(work)
    while time.monotonic() < until:
        next(work)
