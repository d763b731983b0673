"""Perform search steps on one rank: torchrun -m benchmarks.gpu.rank_steps CONFIG OUTPUT STEPS."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from autoreid.config import Config
from autoreid.distributed import StopSignal, World
from autoreid.recipes import load_config
from autoreid.search.task import SearchTask
from benchmarks.gpu.meters import clock, synchronize
from benchmarks.gpu.recipes import build, placed


def steps_of(config: Config, world: World, steps: int) -> dict[str, Any]:
    """Return alphas and weights after some steps, and the milliseconds of a step."""
    task = build(config, world)
    assert isinstance(task, SearchTask)
    for _ in range(steps):
        task.step(StopSignal())
    parameters = {
        f"{part}.{name}": value.detach().cpu().clone()
        for part, module in (("alphas", task.state.alphas), ("weights", task.state.network))
        for name, value in module.named_parameters()
    }
    synchronize(world.device)
    started = time.perf_counter()
    for _ in range(steps):
        task.step(StopSignal())
    synchronize(world.device)
    return {"parameters": parameters, "ms": round(1e3 * (time.perf_counter() - started) / steps, 1)}


def small_all_reduce_us(device: torch.device) -> float:
    """Return the microseconds of an all-reduce of 64 numbers."""
    numbers = torch.zeros(64, device=device)
    return clock(lambda: [dist.all_reduce(numbers) for _ in range(100)], device)["ms"] * 10


def main(config_path: str, output: str, steps: str) -> None:
    """Perform the steps; rank 0 writes the results."""
    config = load_config(Path(config_path))
    with placed(config) as world:
        found = steps_of(config, world, int(steps))
        found |= {"backend": dist.get_backend(), "all_reduce_us": round(small_all_reduce_us(world.device), 1)}
        if world.is_main:
            torch.save(found, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
