"""Estimates how much memory a step needs, before the first step.

A dry run computes the gradients of a step for two small batches, with the same code and on the same device as the
run. The peak memory of a larger batch is extrapolated linearly from these two peaks. The estimate therefore includes
the effects of the candidates, micro-batches, shared statistics, activation checkpointing and half precision.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autoreid.cli import LESS_MEMORY
from autoreid.config import Config
from autoreid.data.loaders import Batch
from autoreid.distributed import World
from autoreid.training.build import memory_format
from autoreid.training.free_memory import free_bytes
from autoreid.training.loop import Task
from autoreid.training.state import RunState

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryNeed:
    """The memory that a rank needs, in bytes.

    Attributes:
        fixed: independent of the batch: weights, gradients, moving averages, the state of the optimiser, and the
            copies of weights that the gradient of the alphas needs.
        per_image: for each image of the rank's share of a batch.
    """

    fixed: float
    per_image: float

    def of(self, images: int) -> float:
        """Return the bytes that a share of this number of images needs."""
        return self.fixed + self.per_image * images

    def images_in(self, free: float, unit: int) -> int:
        """Return the largest number of images, a multiple of `unit`, that fits into the free bytes."""
        return max(0, int((free - self.fixed) // (self.per_image * unit)) * unit)


def log_memory(task: Task, config: Config, world: World) -> None:
    """Log the memory that a step needs and the memory that is free, with a warning if the step will not fit.

    All ranks call it together. It does not change the gradients, running statistics, random states or the positions
    of the streams.

    Raises:
        torch.OutOfMemoryError: not even the small batches of the dry run fit.
    """
    free = free_bytes(world, held=_total_bytes(_lasting_tensors(task.state)))
    need = measure_need(task, config, world)
    count, share = config.training.accumulation, config.data.batch_size // world.size
    _log.info(
        "memory: %s per image and %s for weights and gradients; this rank's %d images (in %d micro-batch%s) need "
        "about %s of %s free; up to %d images fit",
        _format_bytes(need.per_image),
        _format_bytes(need.fixed),
        share,
        count,
        "es" if count > 1 else "",
        _format_bytes(need.of(share)),
        _format_bytes(free),
        need.images_in(free, count * config.data.images_per_identity),
    )
    if need.of(share) > free:
        _log.warning("memory: a step will probably not fit; %s", LESS_MEMORY)


def _format_bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def measure_need(task: Task, config: Config, world: World) -> MemoryNeed:
    """Measure the memory of a step in a dry run with two small batches. All ranks call it together.

    The network is not compiled for it: a compilation for each batch would take minutes.
    """
    # At least two images: batch statistics need more than one.
    identities = -(-2 // config.data.images_per_identity)
    fewest = config.training.accumulation * config.data.images_per_identity * identities
    device, on_gpu = world.device, world.device.type == "cuda"
    # Read only once: libraries keep some of the memory that the first dry run allocates, and the second reuses it.
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    restored_random_state = torch.random.fork_rng([device] if on_gpu else [])
    with restored_random_state, torch.compiler.set_stance("force_eager"):
        small, large = (
            _peak_bytes(partial(task.dry_run, _black_batches(config, device, images)), device, before)
            for images in (fewest, 2 * fewest)
        )
    per_image = (large - small) / fewest
    lasting = _total_bytes(_lasting_tensors(task.state)) + _missing_state_bytes(task.state.weight_optimizer)
    return MemoryNeed(lasting + small - per_image * fewest, per_image)


def _black_batches(config: Config, device: torch.device, images: int) -> Iterator[Batch]:
    """Yield batches of black images, allocating each only when it is requested."""
    data = config.data
    while True:
        pixels = torch.zeros(images, 3, data.height, data.width)
        batch = Batch(pixels, torch.zeros(images, dtype=torch.int64), None)
        yield batch.to(device, memory_format(config.training))


def _peak_bytes(action: Callable[[], None], device: torch.device, before: int) -> int:
    """Run an action and return its peak memory in bytes.

    Args:
        before: bytes allocated on a GPU before the first action, which do not count.
    """
    if device.type != "cuda":
        with _AllocationTracker() as tracker:
            action()
        return tracker.peak
    torch.cuda.reset_peak_memory_stats(device)
    action()
    return torch.cuda.max_memory_allocated(device) - before


class _AllocationTracker(TorchDispatchMode):
    """Tracks the bytes of all storages that operations allocate, until they are freed.

    Attributes:
        now: bytes that are allocated now.
        peak: the largest value of `now` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs: set[int] | None = None
        for storage in _storages(result):
            if id(storage) in self._alive:
                continue
            # A view of an input, or an operation in place, allocates nothing.
            if inputs is None:
                inputs = {id(other) for other in _storages((*args, *(kwargs or {}).values()))}
            if id(storage) not in inputs:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def remove(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, remove)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storages of an operation's inputs or outputs: tensors, and lists and tuples of them."""
    if isinstance(values, Tensor):
        yield values.untyped_storage()
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _storages(value)


def _lasting_tensors(state: RunState) -> Iterable[Tensor]:
    """Yield the tensors of the network, its moving average, the losses and the optimiser's state, if these exist."""
    parts = (getattr(state, name, None) for name in ("network", "ema", "loss", "alpha_loss"))
    modules = [part for part in parts if part is not None]
    yield from itertools.chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
    for of_weight in state.weight_optimizer.state.values():
        yield from (value for value in of_weight.values() if isinstance(value, Tensor))


def _total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _missing_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the state that the optimiser will create for weights in their first update."""
    total = 0
    for group in optimizer.param_groups:
        copies = 3 if group.get("amsgrad") else 2 if "betas" in group else int(group["momentum"] > 0)
        total += copies * _total_bytes(weight for weight in group["params"] if weight not in optimizer.state)
    return total
