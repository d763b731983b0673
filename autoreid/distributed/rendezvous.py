"""Read the rank of this process and the address of rank 0 from the environment variables of torchrun or Slurm."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

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
