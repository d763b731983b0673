"""Read the rank of this process and the address of rank 0 from the environment variables of torchrun or Slurm."""

from __future__ import annotations

import os
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
#: The job step of the shell that salloc starts on a node; its variables are those of the whole job.
_INTERACTIVE_STEP = "4294967290"


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
        several = environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]) != environment["WORLD_SIZE"]
        _check_address(environment, several)
        return Rendezvous(
            rank=_number(environment, "RANK"),
            size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK"),
            address=environment["MASTER_ADDR"],
            port=_number(environment, "MASTER_PORT"),
        )
    if "SLURM_STEP_ID" in environment:
        _require(environment, _SLURM, "srun")
        _check_shell(environment)
        _check_address(environment, environment["SLURM_STEP_NUM_NODES"] != "1")
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


def _check_address(environment: Mapping[str, str], several_nodes: bool) -> None:
    """Raise ConfigError if the address of rank 0 is that of every node."""
    address = environment.get("MASTER_ADDR", "")
    if several_nodes and (address in ("localhost", "::1") or address.startswith("127.")):
        raise ConfigError(
            f"environment: MASTER_ADDR={address} is a different machine on each node; unset it under srun, or set it "
            "to the node of rank 0"
        )


def _check_shell(environment: Mapping[str, str]) -> None:
    """Raise ConfigError in the interactive shell of a job step with several tasks, such as `srun -n 8 --pty bash`.

    Its variables are those of a task, but the other tasks are no ranks.
    """
    tasks = environment["SLURM_STEP_NUM_TASKS"]
    # Slurm gives a terminal to the first task only, and only with --pty.
    is_task = environment.get("SLURM_TASK_PID") == str(os.getpid())
    if tasks != "1" and not is_task and os.isatty(0):
        raise ConfigError(
            f"environment: this is an interactive shell in a job step with {tasks} tasks, which would be waited for; "
            f"start the ranks with `srun --overlap --ntasks={tasks} python -m ...` or torchrun, or a single process "
            "with `srun --overlap --ntasks=1 python -m ...`"
        )


def check_all_started(environment: Mapping[str, str]) -> None:
    """Raise ConfigError if this process is to be the only rank of a Slurm job that has several tasks.

    A batch script without srun runs a command once, whatever the job has asked for.
    """
    step = environment.get("SLURM_STEP_ID", _INTERACTIVE_STEP)
    tasks = environment.get("SLURM_NTASKS") or environment.get("SLURM_NPROCS") or "1"
    if (
        "SLURM_JOB_ID" in environment
        and step == _INTERACTIVE_STEP
        and "RANK" not in environment
        and tasks != "1"
    ):
        raise ConfigError(
            f"environment: job {environment['SLURM_JOB_ID']} has {tasks} tasks, but srun has not started this process, "
            "which would be the only rank; start it with srun or torchrun, or ask for one task with more CPUs "
            "(--ntasks=1 --cpus-per-task)"
        )


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
