"""Communication between ranks before it is known whether a process group works: rank 0's key-value store."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from autoreid.distributed.contact import contact
from autoreid.distributed.rendezvous import read_rendezvous
from autoreid.distributed.store import exchange, leave


@dataclass
class Meeting:
    """This rank and its connection to the others.

    Attributes:
        address: this node's address, as seen by rank 0.
        store: the store that all ranks share, None for a single process.
        timeout: seconds that ranks wait for each other.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    store: Store | None = None
    timeout: float = 60.0
    _exchanges: int = field(default=0, init=False)

    def exchange(self, value: Any, patience: int = 1) -> list[Any]:
        """Return the values of all ranks (anything that JSON can represent), in rank order, on every rank.

        Raises:
            PeerError: some ranks gave no value within `patience` timeouts; the message names them.
        """
        if self.store is None:
            return [value]
        self._exchanges += 1
        name = str(self._exchanges)
        return exchange(self.store, name, self.rank, self.size, value, patience * self.timeout)

    def leave(self) -> None:
        """Leave the meeting; rank 0, whose process hosts the store, leaves last."""
        if self.store is not None:
            leave(self.store, "left", self.rank, self.size, self.timeout)


def meet(timeout: float) -> Meeting:
    """Contact the other ranks of this launch, if there are any.

    Raises:
        ConfigError, PeerError: this rank cannot contact them; the message says why, and how to fix it.
    """
    place = read_rendezvous(os.environ)
    if place is None:
        return Meeting()
    store, address = contact(place, timeout)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Meeting(
        place.rank,
        place.size,
        place.local_rank,
        address,
        PrefixStore(f"doctor/{attempt}", store),
        timeout,
    )
