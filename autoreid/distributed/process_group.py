"""Who this process is among its peers: from torchrun's variables, from Slurm's, or alone."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from autoreid.distributed.device import device_settings
from autoreid.distributed.gpus import Device, Placement, placement_error, place_rank
from autoreid.distributed.lost_peer import watching_nccl
from autoreid.distributed.store import exchange, leave
from autoreid.errors import ConfigError, RunError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NUM_NODES",
    "SLURM_STEP_NODELIST",
)
_GLOO_FREES_SECONDS = 0.1
#: How long rank 0 waits for the other ranks to see why none of them can begin.
_LEAVE_SECONDS = 30.0


@dataclass(frozen=True)
class World:
    """One process's place: its rank of `size` ranks, its rank on this node, and the device it computes on."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes files and talks."""
        return self.rank == 0


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a job meet, before any process group exists."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int


def read_rendezvous(environment: Mapping[str, str]) -> Rendezvous | None:
    """Reads torchrun's variables if they are complete, else Slurm's step, else None (a single process).

    A process in a Slurm allocation that `srun` did not start (a batch script's own python) is a single process.

    Raises:
        ConfigError: a set of variables is there in part, or holds something that is not a number.
    """
    # MASTER_* alone do not make a launch: people export them in job scripts for srun's tasks.
    if any(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        _require(environment, _TORCHRUN, "torchrun")
        return Rendezvous(
            rank=_number(environment, "RANK"),
            size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK"),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT"),
        )
    if "SLURM_STEP_ID" in environment:
        _require(environment, _SLURM, "srun")
        job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
        restart = _number(
            {"SLURM_RESTART_COUNT": environment.get("SLURM_RESTART_COUNT") or "0"}, "SLURM_RESTART_COUNT"
        )
        # A requeued job meets elsewhere: processes of its last life may linger on a node that was cut off.
        port = environment.get("MASTER_PORT") or str(20_000 + (job * 31 + step + restart * 17) % 40_000)
        return Rendezvous(
            rank=_number(environment, "SLURM_PROCID"),
            size=_number(environment, "SLURM_STEP_NUM_TASKS"),
            local_rank=_number(environment, "SLURM_LOCALID"),
            address=environment.get("MASTER_ADDR") or _first_host(environment),
            port=_number({"MASTER_PORT": port}, "MASTER_PORT"),
        )
    return None


def _require(environment: Mapping[str, str], names: tuple[str, ...], launcher: str) -> None:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"environment: {launcher}'s variables are incomplete: {', '.join(missing)} missing; "
            f"start with {launcher}, or unset {', '.join(n for n in names if environment.get(n))}"
        )


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(f"environment: {name}={environment[name]!r} is not a whole number") from None


def _first_host(environment: Mapping[str, str]) -> str:
    """The step's first host; Slurm itself expands the list, whatever the cluster's host names look like."""
    if environment["SLURM_STEP_NUM_NODES"] == "1":
        return "127.0.0.1"
    nodes = environment["SLURM_STEP_NODELIST"]
    try:
        shown = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"environment: `scontrol show hostnames {nodes}` failed ({error}); set MASTER_ADDR to the first node"
        ) from error
    return shown.stdout.split()[0]


@contextmanager
def setup(
    device: Device = "auto",
    timeout_seconds: float = 600.0,
    cudnn_benchmark: bool = True,
    expandable_segments: bool = True,
    deterministic: bool = False,
) -> Iterator[World]:
    """Sets up the device and joins the process group (NCCL on GPUs, gloo on CPUs) for the length of the `with` block.

    Args:
        device: what to compute on; auto takes a GPU where there is one.
        timeout_seconds: how long a collective waits for a dead peer before it fails.
        cudnn_benchmark, expandable_segments, deterministic: see `device_settings`.

    Raises:
        ConfigError: on every rank, if the ranks do not find a GPU each or a CPU each; or the launcher's variables
            are incomplete.
        RunError: some ranks did not come in time.
    """
    place = read_rendezvous(os.environ)
    with device_settings(device, cudnn_benchmark, expandable_segments, deterministic):
        if place is None:
            seat = place_rank(device, 0)
            _check_placements([seat], device)
            yield World(0, 1, 0, seat.device)
        else:
            with _group(place, device, timedelta(seconds=timeout_seconds)) as world:
                yield world


@contextmanager
def _group(place: Rendezvous, device: Device, timeout: timedelta) -> Iterator[World]:
    if not 0 <= place.rank < place.size:
        raise ConfigError(f"environment: rank {place.rank} is outside 0 to {place.size - 1}")
    url = f"tcp://{place.address}:{place.port}"
    store, _, _ = next(rendezvous(url, place.rank, place.size, timeout=timeout))
    seat = agree_on_placement(PrefixStore("seats", store), place, device, timeout.total_seconds())
    on_gpu = seat.device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=PrefixStore("group", store),
        rank=place.rank,
        world_size=place.size,
        timeout=timeout,
        device_id=seat.device if on_gpu else None,
    )
    try:
        with watching_nccl() if on_gpu else nullcontext():
            yield World(place.rank, place.size, place.local_rank, seat.device)
    finally:
        # The destructor of torch 2.6 waits for gloo's threads while it holds the GIL, which they need to free the
        # tensors of the last collective.
        time.sleep(_GLOO_FREES_SECONDS)
        dist.destroy_process_group()


def agree_on_placement(store: Store, place: Rendezvous, device: Device, timeout: float) -> Placement:
    """This rank's seat, once all ranks know that their seats fit together; before NCCL, which would only time out.

    Args:
        timeout: seconds to wait for the other ranks.

    Raises:
        ConfigError: on every rank, if they do not fit together.
        RunError: some ranks did not come in time.
    """
    mine = place_rank(device, place.local_rank)
    found = exchange(store, "seat", place.rank, place.size, mine, timeout)
    try:
        _check_placements([Placement(*values) for values in found], device)
    except ConfigError:
        # Rank 0 holds the store: it must not leave before every rank has seen what is wrong.
        with suppress(RunError):
            leave(store, "left", place.rank, place.size, min(timeout, _LEAVE_SECONDS))
        raise
    return mine


def _check_placements(seats: Sequence[Placement], device: Device) -> None:
    trouble = placement_error(seats, device)
    if trouble is not None:
        raise ConfigError("; ".join(trouble))
