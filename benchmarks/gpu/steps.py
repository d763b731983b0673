"""Whole search steps with loading: time, memory, kernels, and waits for data and for the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

from autoreid.config import Config
from autoreid.distributed import StopSignal, World
from autoreid.training.memory import measure_need
from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import count_kernels, count_waits, synchronize
from benchmarks.gpu.recipes import build, overrides, placed, recipe

#: More batches than the loaders have prefetched when the measurement starts.
WARM, MEASURED = 12, 12

SECOND = "under 20,000 kernels, 1 wait, data wait under 2 %"
FIRST = "under 8,000 kernels, 1 wait, data wait under 2 %"
#: Recipes, modes and targets.
PLANS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("darts_triplet.yaml", (), SECOND),
    ("darts_triplet.yaml", ("first order",), FIRST),
    ("darts_triplet.yaml", ("first order", "bfloat16"), FIRST),
    ("darts_triplet.yaml", ("first order", "bfloat16", "CUDA graphs"), ""),
    ("darts_triplet.yaml", ("bfloat16",), SECOND),
    ("darts_triplet.yaml", ("CUDA graphs",), ""),
    ("darts_triplet.yaml", ("float32",), ""),
    ("darts_triplet.yaml", ("alphas in tf32",), ""),
    ("darts_triplet.yaml", ("deterministic",), ""),
    ("osnet_ain_search.yaml", (), ""),
    ("osnet_ain_search.yaml", ("bfloat16",), ""),
)
#: Indices of the plans of a dry run.
TRIED = (0, 10)


def measure_steps(check: Check, config: Config) -> Figures:
    """Measure time, waits, kernels and memory of the steps of a search or training."""
    with placed(config) as world:
        return _measure(check, config, world)


def _measure(check: Check, config: Config, world: World) -> Figures:
    device = world.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    task = build(config, world)
    need = measure_need(task, config, world) if device.type == "cuda" else None
    step = partial(task.step, StopSignal())
    for _ in range(check.pick(WARM, 1)):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps, waited = check.pick(MEASURED, 1), task.state.waited
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    seconds = time.perf_counter() - started
    batch = config.data.batch_size
    figures = {
        "ms": round(1e3 * seconds / steps, 1),
        "images_a_second": round(batch * steps / seconds),
        "data_wait": round((task.state.waited - waited) / seconds, 4),
    }
    if need is not None:
        figures["expected_gb"] = round(need.of(batch) / 1e9, 2)
        figures["peak_gb"] = round((torch.cuda.max_memory_allocated(device) - before) / 1e9, 2)
    return figures | count_waits(step, device) | count_kernels(step, device)


def cases(check: Check) -> Iterator[Case]:
    """Yield the recipes of searches, with a batch of 128 images."""
    for name, modes, goal in check.pick(PLANS, [PLANS[place] for place in TRIED]):

        def measure(name: str = name, modes: tuple[str, ...] = modes) -> Figures:
            return measure_steps(check, recipe(check, name, "data.batch_size=128", *overrides(modes)))

        title = ", ".join((name.removesuffix(".yaml"), *modes, "batch 128"))
        yield Case(title, measure, 12, goal)
