"""How ranks talk before there is a process group: through the key-value store that rank 0 or torchrun holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from autoreid.errors import RunError


def exchange(store: Store, name: str, rank: int, size: int, value: Any, timeout: float) -> list[Any]:
    """Every rank's value, in order of ranks, on every rank; all ranks call this.

    Args:
        name: of this exchange; each has its own.
        value: anything that JSON holds; tuples arrive as lists.
        timeout: seconds to wait for the others.

    Raises:
        RunError: some ranks gave no value in time, which are named, or the store is gone.
    """
    with _contact():
        store.set(f"{name}/{rank}", json.dumps(value))
        keys = _wait_for_all(store, name, size, timeout)
        return [json.loads(store.get(key)) for key in keys]


def leave(store: Store, name: str, rank: int, size: int, timeout: float) -> None:
    """Says that this rank needs the store no longer. Rank 0, which holds it, waits until all have said so.

    Raises:
        RunError: as `exchange`.
    """
    with _contact():
        store.set(f"{name}/{rank}", "")
        if rank == 0:
            _wait_for_all(store, name, size, timeout)


def _wait_for_all(store: Store, name: str, size: int, timeout: float) -> list[str]:
    keys = [f"{name}/{rank}" for rank in range(size)]
    deadline = time.monotonic() + timeout
    while not store.check(keys):
        if time.monotonic() > deadline:
            missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            raise RunError(f"nothing heard of rank {', '.join(missing)}, which may have said why itself")
        time.sleep(0.05)
    return keys


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"lost contact with rank 0: {error}") from error
