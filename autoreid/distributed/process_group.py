"""Set up the process group from the environment variables of torchrun or Slurm, or run as a single process."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

from autoreid.config import Distributed
from autoreid.distributed.device import device_settings
from autoreid.distributed.gpus import Device, Placement, place_rank, placement_error
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


@dataclass(frozen=True)
class Rendezvous:
    """The rank of this process and the address of rank 0, as set by a launcher."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int


def read_rendezvous(environment: Mapping[str, str]) -> Rendezvous | None:
    """Read the variables of torchrun, or else those of a Slurm job step; return None for a single process.

    A process in a Slurm allocation that was not started by `srun`, such as python in a batch script, is a single
    process.

    Raises:
        ConfigError: some of a launcher's variables are missing, or are not numbers.
    """
    # MASTER_* alone do not indicate torchrun: users export them in batch scripts for srun.
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
        # A restarted job uses another port: on a node that lost its network, processes of the last start may still run.
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
            f"environment: variables of {launcher} are missing: {', '.join(missing)}; "
            f"start with {launcher}, or unset {', '.join(n for n in names if environment.get(n))}"
        )


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise ConfigError(f"environment: {name}={environment[name]!r} is not a whole number") from None


def _first_host(environment: Mapping[str, str]) -> str:
    """Return the first host of the job step. Slurm expands the node list, so that any host names work."""
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
    """Set up the device and join the process group (NCCL on GPUs, gloo on CPUs) for the duration of the `with` block.

    Args:
        device: device to compute on; auto uses a GPU if there is one.
        timeout_seconds: how long a collective waits for the other ranks before it fails.
        cudnn_benchmark, expandable_segments, deterministic: see `device_settings`.

    Raises:
        ConfigError: the launcher's variables are incomplete; or, on every rank, two ranks share a GPU, or some ranks
            compute on GPUs and others on CPUs.
        RunError: some ranks did not join in time.
    """
    rendezvous = read_rendezvous(os.environ)
    with device_settings(device, cudnn_benchmark, expandable_segments, deterministic):
        if rendezvous is None:
            placement = place_rank(device, 0)
            _check_placements([placement], device)
            yield World(0, 1, 0, placement.device)
        else:
            with _group(rendezvous, device, timedelta(seconds=timeout_seconds)) as world:
                yield world


def setup_for(settings: Distributed) -> AbstractContextManager[World]:
    """Return `setup` with the settings of a run."""
    return setup(
        settings.device,
        settings.timeout_seconds,
        settings.cudnn_benchmark,
        settings.expandable_segments,
        settings.deterministic,
    )


@contextmanager
def _group(rendezvous: Rendezvous, device: Device, timeout: timedelta) -> Iterator[World]:
    rank, size = rendezvous.rank, rendezvous.size
    if not 0 <= rank < size:
        raise ConfigError(f"environment: rank {rank} is not between 0 and {size - 1}")
    url = f"tcp://{rendezvous.address}:{rendezvous.port}"
    store, _, _ = next(torch_rendezvous(url, rank, size, timeout=timeout))
    placement = agree_on_placement(
        PrefixStore("placements", store), rendezvous, device, timeout.total_seconds()
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


def agree_on_placement(store: Store, rendezvous: Rendezvous, device: Device, timeout: float) -> Placement:
    """Return the placement of this rank, after the placements of all ranks have been checked on every rank.

    This happens before NCCL is set up, which would only time out if two ranks shared a GPU.

    Args:
        timeout: seconds to wait for the other ranks.

    Raises:
        ConfigError: on every rank, if the placements are not consistent.
        RunError: some ranks did not join in time.
    """
    rank, size = rendezvous.rank, rendezvous.size
    placement = place_rank(device, rendezvous.local_rank)
    gathered = exchange(store, "placement", rank, size, placement, timeout)
    try:
        _check_placements([Placement(*values) for values in gathered], device)
    except ConfigError:
        # Rank 0 holds the store: it must not exit before every rank has read the placements.
        with suppress(RunError):
            leave(store, "left", rank, size, min(timeout, _LEAVE_SECONDS))
        raise
    return placement


def _check_placements(placements: Sequence[Placement], device: Device) -> None:
    error = placement_error(placements, device)
    if error is not None:
        raise ConfigError("; ".join(error))
