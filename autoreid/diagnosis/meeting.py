"""Communication between ranks before it is known whether a process group works: rank 0's key-value store."""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    Store,
    TCPStore,
)

from autoreid.distributed.process_group import Rendezvous, read_rendezvous
from autoreid.distributed.store import exchange, leave
from autoreid.errors import ConfigError

_UNKNOWN = "unknown host; set MASTER_ADDR to the node of rank 0, if necessary as an IP address"


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
            RunError: some ranks gave no value within `patience` timeouts; the message names them.
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
        ConfigError: this rank cannot contact them; the message says why, and how to fix it.
    """
    place = read_rendezvous(os.environ)
    if place is None:
        return Meeting()
    # With torchrun's agent store, torchrun's own process already listens on the port.
    hosts = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address = _check_port(place) if hosts else reach(place, timeout)
    try:
        store = TCPStore(
            place.address,
            place.port,
            is_master=hosts,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,  # the process group will use the same port
        )
    except RuntimeError as error:
        where = f"{place.address}, port {place.port}"
        raise ConfigError(f"rank 0 does not answer at {where}; see its own message for the reason") from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Meeting(
        place.rank,
        place.size,
        place.local_rank,
        address,
        PrefixStore(f"doctor/{attempt}", store),
        timeout,
    )


def _check_port(place: Rendezvous) -> str:
    """Check that rank 0 can be reached at the address that the other ranks use; returns its address."""
    where = f"rank 0 cannot listen at {place.address}, port {place.port}"
    try:
        with (
            listen(place.port) as server,
            socket.create_connection((place.address, place.port), timeout=5.0) as client,
        ):
            server.settimeout(5.0)
            server.accept()[0].close()
            return str(client.getpeername()[0])
    except socket.gaierror:
        raise ConfigError(f"{where}: {_UNKNOWN}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where}: the port is in use; set MASTER_PORT to a free one") from error
        raise ConfigError(f"{where}: {error}; MASTER_ADDR must be the node of rank 0") from error


def listen(port: int) -> socket.socket:
    """Return a socket that listens on all addresses of this node."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def reach(place: Rendezvous, timeout: float) -> str:
    """Wait until rank 0 can be reached; returns this node's own address in that network.

    Raises:
        ConfigError: rank 0 was not reached within `timeout` seconds; the message says why.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((place.address, place.port), timeout=5.0) as connection:
                return str(connection.getsockname()[0])
        except socket.gaierror:
            deadline, reason = 0.0, _UNKNOWN
        except ConnectionRefusedError:
            reason = (
                "connection refused; MASTER_ADDR must be the node of rank 0, see also rank 0's own message"
            )
        except OSError as error:
            reason = f"{error}; open the ports between the nodes, or correct MASTER_ADDR"
        if time.monotonic() > deadline:
            raise ConfigError(f"cannot reach rank 0 at {place.address}, port {place.port}: {reason}")
        time.sleep(0.5)
