"""How much memory a rank's tensors may take."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from autoreid.distributed import World, gather_objects


def free_bytes(world: World, held: int) -> int:
    """What this rank's tensors may take, those in hand included: of its GPU, or of a fair part of its node's memory.

    Args:
        held: bytes in hand, where torch does not count them.
    """
    if world.device.type == "cuda":
        return torch.cuda.mem_get_info(world.device)[0] + torch.cuda.memory_reserved(world.device)
    ranks_here = gather_objects(platform.node()).count(platform.node())
    return available_memory() // ranks_here + held


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this machine's processes may still take, within what Slurm or a container lets this one have."""
    lines = (proc / "meminfo").read_text().splitlines()
    room: float = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = cgroups / "memory" if controllers else cgroups
        here = top / path.lstrip("/")
        for group in (here, *here.parents):
            if group.is_relative_to(top):
                room = min(room, _room_in(group, second=not controllers))
    return int(room)


def _room_in(group: Path, second: bool) -> float:
    """Of a cgroup of the first or second version; caches of files make way. Infinite without a limit."""
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if second
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        limit = (group / names[0]).read_text().strip()
        if limit == "max":
            return float("inf")
        used = int((group / names[1]).read_text())
        entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the root has none, a container may not see its own
        return float("inf")
    return max(0, int(limit) - used + int(entries.get(names[2], 0)))
