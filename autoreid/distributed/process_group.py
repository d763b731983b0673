"""Who this process is among its peers: from torchrun's variables, from Slurm's, or alone."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed as dist

from autoreid.errors import ConfigError

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


def choose_device(setting: Literal["auto", "cpu", "cuda"], local_rank: int) -> torch.device:
    """This rank's device. One task has one GPU: its own if Slurm shows it only that, else the local rank's.

    Raises:
        ConfigError: `cuda` was asked for and torch sees no GPU.
    """
    if setting == "cpu" or (setting == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("distributed.device = cuda: torch sees no GPU here; use auto or cpu")
    visible = torch.cuda.device_count()
    return torch.device("cuda", 0 if visible == 1 else local_rank)


@contextmanager
def setup(device: Literal["auto", "cpu", "cuda"] = "auto", timeout_seconds: float = 600.0) -> Iterator[World]:
    """Joins the process group (NCCL on GPUs, gloo on CPUs) for the length of the `with` block.

    Args:
        device: what to compute on; auto takes a GPU where there is one.
        timeout_seconds: how long a collective waits for a dead peer before it fails.

    Raises:
        ConfigError: the launcher's variables are incomplete, or the device is not there.
    """
    rendezvous = read_rendezvous(os.environ)
    if rendezvous is None:
        yield World(0, 1, 0, _use(choose_device(device, 0)))
        return
    if not 0 <= rendezvous.rank < rendezvous.size:
        raise ConfigError(f"environment: rank {rendezvous.rank} is outside 0 to {rendezvous.size - 1}")
    chosen = _use(choose_device(device, rendezvous.local_rank))
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        init_method=f"tcp://{rendezvous.address}:{rendezvous.port}",
        rank=rendezvous.rank,
        world_size=rendezvous.size,
        timeout=timedelta(seconds=timeout_seconds),
        device_id=chosen if chosen.type == "cuda" else None,
    )
    try:
        yield World(rendezvous.rank, rendezvous.size, rendezvous.local_rank, chosen)
    finally:
        # The destructor of torch 2.6 waits for gloo's threads while it holds the GIL, which they need to free the
        # tensors of the last collective.
        time.sleep(_GLOO_FREES_SECONDS)
        dist.destroy_process_group()


def _use(device: torch.device) -> torch.device:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
