"""Communication before the process group exists, through the key-value store of rank 0 or torchrun."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]

from autoreid.distributed.gpus import name_ranks
from autoreid.distributed.stop import StopSignal
from autoreid.errors import PeerError


def exchange(
    store: Store,
    name: str,
    rank: int,
    size: int,
    value: Any,
    timeout: float,
    stop: StopSignal | None = None,
) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank. Every rank must call this.

    Args:
        name: unique name of this exchange.
        value: JSON-serialisable value; tuples become lists.
        timeout: seconds to wait for the other ranks.
        stop: signal that ends the wait.

    Raises:
        PeerError: some ranks, which the message names, sent no value in time; or the store is gone.
        StoppedError: a stop signal arrived.
    """
    with _contact():
        store.set(f"{name}/{rank}", json.dumps(value))
        keys = _wait_for_all(store, name, size, timeout, stop)
        return [json.loads(store.get(key)) for key in keys]


def leave(store: Store, name: str, rank: int, size: int, timeout: float) -> None:
    """Signal that this rank no longer needs the store. Rank 0, which holds it, waits for the signals of all ranks.

    Raises:
        PeerError: see `exchange`.
    """
    with _contact():
        store.set(f"{name}/{rank}", "")
        if rank == 0:
            _wait_for_all(store, name, size, timeout)


def _wait_for_all(
    store: Store, name: str, size: int, timeout: float, stop: StopSignal | None = None
) -> list[str]:
    keys = [f"{name}/{rank}" for rank in range(size)]
    deadline = time.monotonic() + timeout
    while not store.check(keys):
        if stop is not None:
            stop.end_wait("the other ranks")
        if time.monotonic() > deadline:
            missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
            raise PeerError(
                f"no message from {name_ranks(missing)} within {timeout:g} s; its log may say why"
            )
        time.sleep(0.05)
    return keys


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerError(f"lost contact with rank 0: {error}") from error
