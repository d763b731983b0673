"""Work that some ranks do while the others wait, however long it takes."""

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
    """Does this rank's work, if it has any, and returns its result once every rank's is done.

    Ranks hear of each other every so many seconds, so that no wait outlasts the process group's timeout unless a
    single piece of work does.

    Args:
        work: yields between pieces, and returns the result; None to wait only.

    Raises:
        AutoreidError: what the first rank's work raised, on every rank. Any other error is a RunError there.
    """
    result: Anything | None = None
    error: AutoreidError | None = None
    while True:
        if work is not None:
            try:
                _go_on(work, seconds)
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


def _go_on(work: Generator[None, None, Any], seconds: float) -> None:
    """A piece of work, and more for about so many seconds; raises StopIteration at its end."""
    until = time.monotonic() + seconds
    next(work)
    while time.monotonic() < until:
        next(work)
