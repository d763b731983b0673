"""The largest batch with a step that fits into 11 GB, compared with the estimate of a run before its first step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial

import torch

from autoreid.config import Config
from autoreid.data.loaders import Batch
from autoreid.distributed import StopSignal, World
from autoreid.search.task import SearchTask
from autoreid.training.memory import measure_need
from autoreid.training.task import TrainTask
from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import synchronize
from benchmarks.gpu.recipes import build, overrides, placed, recipe

ROOM = 11e9
#: Titles, modes and overrides for configs/darts_triplet.yaml, and targets.
PLANS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("float32", ("float32",), (), "64 images"),
    ("bfloat16", ("bfloat16",), (), ""),
    ("float32, cells recomputed", ("float32",), ("search.activation_checkpointing=cell",), ""),
    ("float32, first order", ("float32", "first order"), (), ""),
)


def largest(fits: Callable[[int], bool], low: int, high: int, unit: int) -> int:
    """Return the largest multiple of `unit` that fits, found by bisection.

    Args:
        low: a multiple that fits, or 0.
        high: a larger multiple that is assumed not to fit.
    """
    while high - low > unit:
        middle = (low + high) // 2 // unit * unit
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def blanks(config: Config, device: torch.device, images: int) -> Iterator[Batch]:
    """Yield batches of black images without end."""
    size = (images, 3, config.data.height, config.data.width)
    while True:
        yield Batch(torch.zeros(size), torch.zeros(images, dtype=torch.int64), None).to(device)


def fits_into_memory(task: SearchTask | TrainTask, config: Config, device: torch.device, images: int) -> bool:
    """Return whether the gradients of a step with this number of images fit into memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        task.dry_run(blanks(config, device, images))
        synchronize(device)
    except torch.OutOfMemoryError:
        return False
    return True


def measure(check: Check, changes: tuple[str, ...]) -> Figures:
    """Bisect between no images and twice the number that is expected to fit."""
    config = recipe(check, "darts_triplet.yaml", "data.batch_size=32", *changes)
    with placed(config) as world:
        return _measure(check, config, world)


def _measure(check: Check, config: Config, world: World) -> Figures:
    device = world.device
    task = build(config, world)
    task.step(StopSignal())  # so that the optimisers have their buffers
    need = measure_need(task, config, world)
    unit = config.data.images_per_identity
    expected = need.images_in(ROOM, unit)
    # A CPU has no memory limit here: a dry run only tests the bisection.
    high = check.pick(2 * expected + unit, 4 * unit)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, ROOM / torch.cuda.get_device_properties(device).total_memory), device
        )
    try:
        found = largest(partial(fits_into_memory, task, config, device), 0, high, unit)
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    return {
        "fitting_images": found,
        "expected_to_fit": expected,
        "mb_an_image": round(need.per_image / 1e6, 1),
        "fixed_mb": round(need.fixed / 1e6, 1),
    }


def cases(check: Check) -> Iterator[Case]:
    """Yield a second-order search in several modes."""
    for name, modes, changes, goal in check.pick(PLANS, PLANS[:1]):
        action = partial(measure, check, (*overrides(modes), *changes))
        yield Case(f"darts_triplet, {name}, in 11 GB", action, 12, goal)
