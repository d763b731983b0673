"""The environment variables that a submitted job does not get from the shell which submits it."""

from __future__ import annotations

from collections.abc import Mapping

#: Settings of Slurm's commands, which no allocation sets.
_SETTINGS = frozenset(("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_TIME_FORMAT"))
#: What Slurm sets in an allocation or job step: sbatch would pass it on, and srun in the job take it for its options.
_OF_SLURM = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND", "PMI_", "PMIX_")
#: What torchrun sets for its processes, or users export for them.
_OF_TORCHRUN = ("TORCHELASTIC_", "PET_")
_OF_RANKS = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
        *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT"),
        *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
    )
)


def not_for_jobs(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that describe another allocation, its ranks or its GPUs."""
    return sorted(
        name
        for name in environment
        if name in _OF_RANKS or (name.startswith((*_OF_SLURM, *_OF_TORCHRUN)) and name not in _SETTINGS)
    )


def sbatch_command(environment: Mapping[str, str], *arguments: str) -> list[str]:
    """Return the command that calls sbatch without the variables that are not for jobs."""
    unset = [f"--unset={name}" for name in not_for_jobs(environment)]
    return ["env", *unset, "sbatch", *arguments] if unset else ["sbatch", *arguments]
