"""The memory that is available to a rank's tensors."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from autoreid.distributed import World, gather_objects


def free_bytes(world: World, held: int) -> int:
    """Return the bytes that this rank's tensors may use in total, including those that it already holds.

    On a GPU this is the free memory of the GPU; on a CPU, an equal share of the node's free memory for each of its
    ranks. All ranks call it together.

    Args:
        held: bytes of the tensors that the rank already holds. Only used on CPUs: on GPUs torch counts them.
    """
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0] + torch.cuda.memory_reserved(world.device)
    ranks_here = gather_objects(platform.node()).count(platform.node())
    return available_memory() // ranks_here + held


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process may still allocate on this machine, within the limits of its cgroups.

    Slurm and containers set such limits.

    Args:
        proc: where procfs is mounted.
        cgroups: where the cgroup file systems are mounted.
    """
    lines = (proc / "meminfo").read_text().splitlines()
    free: float = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if group.is_relative_to(root):
                free = min(free, _free_in_cgroup(group, version=1 if controllers else 2))
    return int(free)


def _free_in_cgroup(group: Path, version: int) -> float:
    """Return the bytes that are left below the limit of a cgroup; infinity if it has no limit.

    The inactive file cache counts as free, because the kernel reclaims it when memory runs short.
    """
    limit_file, usage_file, cache_key = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        limit = (group / limit_file).read_text().strip()
        if limit == "max":
            return float("inf")
        used = int((group / usage_file).read_text())
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the root cgroup has no such files, and a container may not see its own
        return float("inf")
    return max(0, int(limit) - used + int(entries.get(cache_key, 0)))
