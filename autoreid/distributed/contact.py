"""Contact rank 0, whose key-value store the ranks share before they form a process group."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import ExitStack
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from autoreid.distributed.rendezvous import Rendezvous
from autoreid.distributed.stop import StopSignal
from autoreid.errors import ConfigError, PeerError

_UNKNOWN = "unknown host; set MASTER_ADDR to the node of rank 0, if necessary as an IP address"


def contact(place: Rendezvous, timeout: float, stop: StopSignal | None = None) -> tuple[Store, str]:
    """Return the store that all ranks share, and the address of this node as seen by rank 0.

    Rank 0, which holds the store, does not wait for the others here.

    Args:
        timeout: seconds to wait for rank 0, and later for each key.
        stop: signal that ends the wait.

    Raises:
        ConfigError: MASTER_ADDR or MASTER_PORT is wrong.
        PeerError: rank 0 was not reached in time; or its address or port, which Slurm's variables give, is of no use.
        StoppedError: a stop signal arrived.
    """
    # With torchrun's agent store, torchrun's own process already listens on the port.
    hosts = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address = _own_address(place) if hosts else reach(place, timeout, stop)
    try:
        store = TCPStore(
            place.address,
            place.port,
            is_master=hosts,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,  # the doctor's process group uses the same port
        )
    except RuntimeError as error:
        if hosts:
            remedy = "set MASTER_PORT to a free one, or in a job unset it to use one that the job's id gives"
            raise _error("MASTER_PORT", f"{_cannot_listen(place)}: the port is in use; {remedy}") from error
        where = f"{place.address}, port {place.port}"
        raise PeerError(f"rank 0 does not answer at {where}; see its own message for the reason") from error
    return store, address


def _own_address(place: Rendezvous) -> str:
    """Return the address of rank 0, this process, after checking that the other ranks' address leads to it."""
    try:
        with ExitStack() as stack:
            try:
                server = stack.enter_context(listen(place.port))
                server.settimeout(5.0)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            # If the port is in use, the connection is to its owner, which may be this process.
            client = stack.enter_context(socket.create_connection((place.address, place.port), timeout=5.0))
            return str(client.getpeername()[0])
    except socket.gaierror:
        raise _error("MASTER_ADDR", f"{_cannot_listen(place)}: {_UNKNOWN}") from None
    except OSError as error:
        text = f"{_cannot_listen(place)}: {error}; MASTER_ADDR must be the node of rank 0"
        raise _error("MASTER_ADDR", text) from error


def _cannot_listen(place: Rendezvous) -> str:
    return f"rank 0 cannot listen at {place.address}, port {place.port}"


def _error(variable: str, message: str) -> ConfigError | PeerError:
    """Return a ConfigError if a variable is set in the environment. Otherwise a restarted job may have no error."""
    return ConfigError(message) if os.environ.get(variable) else PeerError(message)


def listen(port: int) -> socket.socket:
    """Return a socket that listens on all addresses of this node."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def reach(place: Rendezvous, timeout: float, stop: StopSignal | None = None) -> str:
    """Wait until rank 0 can be reached; returns this node's own address in that network.

    Raises:
        ConfigError: MASTER_ADDR is unknown.
        PeerError: rank 0 was not reached within `timeout` seconds; the message says why.
        StoppedError: a stop signal arrived.
    """
    where = f"cannot reach rank 0 at {place.address}, port {place.port}"
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((place.address, place.port), timeout=5.0) as connection:
                return str(connection.getsockname()[0])
        except socket.gaierror:
            raise _error("MASTER_ADDR", f"{where}: {_UNKNOWN}") from None
        except ConnectionRefusedError:
            reason = (
                "connection refused; MASTER_ADDR must be the node of rank 0, see also rank 0's own message"
            )
        except OSError as error:
            reason = f"{error}; open the ports between the nodes, or correct MASTER_ADDR"
        if stop is not None:
            stop.end_wait("rank 0")
        if time.monotonic() > deadline:
            raise PeerError(f"{where}: {reason}")
        time.sleep(0.5)
