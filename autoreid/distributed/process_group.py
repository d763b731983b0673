"""Set up the process group from the environment variables of torchrun or Slurm, or run as a single process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from autoreid.config import Distributed
from autoreid.distributed.contact import contact
from autoreid.distributed.device import device_settings
from autoreid.distributed.gpus import Device, Placement, place_rank, placement_error
from autoreid.distributed.lost_peer import watching_nccl
from autoreid.distributed.rendezvous import Rendezvous, read_rendezvous
from autoreid.distributed.stop import StopSignal
from autoreid.distributed.store import exchange, leave
from autoreid.errors import ConfigError, PeerError

_GLOO_FREES_SECONDS = 0.1
#: How long rank 0 keeps the store open for the other ranks to read why the run cannot start.
_LEAVE_SECONDS = 30.0


@dataclass(frozen=True)
class World:
    """The rank of this process among `size` ranks, its rank on this node, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints to the console."""
        return self.rank == 0


@contextmanager
def setup(
    device: Device = "auto",
    timeout_seconds: float = 600.0,
    cudnn_benchmark: bool = True,
    expandable_segments: bool = True,
    deterministic: bool = False,
    stop: StopSignal | None = None,
) -> Iterator[World]:
    """Set up the device and join the process group (NCCL on GPUs, gloo on CPUs) for the duration of the `with` block.

    Args:
        device: device to compute on; auto uses a GPU if there is one.
        timeout_seconds: how long a collective waits for the other ranks before it fails.
        cudnn_benchmark, expandable_segments, deterministic: see `device_settings`.
        stop: signal that ends the wait for the other ranks to join; None if there is no handler.

    Raises:
        ConfigError: the launcher's variables are incomplete; or, on every rank, two ranks share a GPU, or some ranks
            compute on GPUs and others on CPUs.
        PeerError: some ranks did not join in time.
        StoppedError: a stop signal arrived before all ranks had joined.
    """
    rendezvous = read_rendezvous(os.environ)
    with device_settings(device, cudnn_benchmark, expandable_segments, deterministic):
        if rendezvous is None:
            placement = place_rank(device, 0)
            _check_placements([placement], device)
            yield World(0, 1, 0, placement.device)
        else:
            with _group(rendezvous, device, timedelta(seconds=timeout_seconds), stop) as world:
                yield world


def setup_for(settings: Distributed, stop: StopSignal | None = None) -> AbstractContextManager[World]:
    """Return `setup` with the settings of a run."""
    return setup(
        settings.device,
        settings.timeout_seconds,
        settings.cudnn_benchmark,
        settings.expandable_segments,
        settings.deterministic,
        stop,
    )


@contextmanager
def _group(
    rendezvous: Rendezvous, device: Device, timeout: timedelta, stop: StopSignal | None
) -> Iterator[World]:
    rank, size = rendezvous.rank, rendezvous.size
    if not 0 <= rank < size:
        raise ConfigError(f"environment: rank {rank} is not between 0 and {size - 1}")
    store, _ = contact(rendezvous, timeout.total_seconds(), stop)
    placement = agree_on_placement(
        PrefixStore("placements", store), rendezvous, device, timeout.total_seconds(), stop
    )
    on_gpu = placement.device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=placement.device if on_gpu else None,
    )
    try:
        with watching_nccl() if on_gpu else nullcontext():
            yield World(rank, size, rendezvous.local_rank, placement.device)
    finally:
        # The destructor of torch 2.6 waits for gloo's threads while it holds the GIL, which these need to free the
        # tensors of the last collective.
        time.sleep(_GLOO_FREES_SECONDS)
        dist.destroy_process_group()


def agree_on_placement(
    store: Store, rendezvous: Rendezvous, device: Device, timeout: float, stop: StopSignal | None = None
) -> Placement:
    """Return the placement of this rank, after the placements of all ranks have been checked on every rank.

    This happens before NCCL is set up, which would only time out if two ranks shared a GPU.

    Args:
        timeout: seconds to wait for the other ranks.

    Raises:
        ConfigError: on every rank, if the placements are not consistent.
        PeerError: some ranks did not join in time.
        StoppedError: a stop signal arrived before they had.
    """
    rank, size = rendezvous.rank, rendezvous.size
    placement = place_rank(device, rendezvous.local_rank)
    gathered = exchange(store, "placement", rank, size, placement, timeout, stop)
    try:
        _check_placements([Placement(*values) for values in gathered], device)
    except ConfigError:
        # Rank 0 holds the store: it must not exit before every rank has read the placements.
        with suppress(PeerError):
            leave(store, "left", rank, size, min(timeout, _LEAVE_SECONDS))
        raise
    return placement


def _check_placements(placements: Sequence[Placement], device: Device) -> None:
    error = placement_error(placements, device)
    if error is not None:
        raise ConfigError("; ".join(error))
