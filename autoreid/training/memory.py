"""What a step will take of the device's memory, measured on a few images before the first one.

The gradients of a step are computed with two small batches, by the run's own code on the run's own device, and the
most that was alive at a time is read off both: a straight line in the number of images says the rest. So candidates,
micro-batches, shared statistics, recomputed cells and half precision count as they will in earnest.
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
    """What a rank needs, in bytes.

    Attributes:
        fixed: whatever the batch: weights, their gradients and averages, copies that the alphas' gradient takes.
        per_image: for each image of the rank's share of a batch.
    """

    fixed: float
    per_image: float

    def of(self, images: int) -> float:
        """For a share of so many images."""
        return self.fixed + self.per_image * images

    def images_in(self, room: float, unit: int) -> int:
        """The largest share, a multiple of `unit`, that does not need more than the room."""
        return max(0, int((room - self.fixed) // (self.per_image * unit)) * unit)


def log_memory(task: Task, config: Config, world: World) -> None:
    """Says what a step needs and what there is, with a warning if it will not fit; all ranks call it together.

    Gradients, running statistics, random numbers and the streams' positions are left as they were.

    Raises:
        torch.OutOfMemoryError: a few images are too many already.
    """
    room = free_bytes(world, held=_bytes(_tensors_of(task.state)))
    need = measure_need(task, config, world)
    count, share = config.training.accumulation, config.data.batch_size // world.size
    _log.info(
        "memory: %s an image and %s for weights and gradients; this rank's %d images (in %d micro-batch%s) need about "
        "%s of %s free; up to %d images would fit",
        _shown(need.per_image),
        _shown(need.fixed),
        share,
        count,
        "es" if count > 1 else "",
        _shown(need.of(share)),
        _shown(room),
        need.images_in(room, count * config.data.images_per_identity),
    )
    if need.of(share) > room:
        _log.warning("memory: a step will hardly fit; %s", LESS_MEMORY)


def _shown(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def measure_need(task: Task, config: Config, world: World) -> MemoryNeed:
    """Rehearses a step with two small batches, uncompiled: a compiler would work for minutes on each."""
    identities = -(-2 // config.data.images_per_identity)  # a norm over one image is none
    fewest = config.training.accumulation * config.data.images_per_identity * identities
    peak = _meter(world.device)
    own_random_numbers = torch.random.fork_rng([world.device] if world.device.type == "cuda" else [])
    with own_random_numbers, torch.compiler.set_stance("force_eager"):
        small, large = (
            peak(partial(task.dry_run, _blanks(config, world.device, images)))
            for images in (fewest, 2 * fewest)
        )
    per_image = (large - small) / fewest
    lasting = _bytes(_tensors_of(task.state)) + _bytes_to_come(task.state.weight_optimizer)
    return MemoryNeed(lasting + small - per_image * fewest, per_image)


def _blanks(config: Config, device: torch.device, images: int) -> Iterator[Batch]:
    """Batches of black images, made when they are asked for."""
    data = config.data
    while True:
        pixels = torch.zeros(images, 3, data.height, data.width)
        batch = Batch(pixels, torch.zeros(images, dtype=torch.int64), None)
        yield batch.to(device, memory_format(config.training))


def _meter(device: torch.device) -> Callable[[Callable[[], None]], int]:
    """Measures the most bytes that are alive at a time during actions, beside what is there now."""
    if device.type != "cuda":

        def on_cpu(action: Callable[[], None]) -> int:
            with _Ledger() as ledger:
                action()
            return ledger.peak

        return on_cpu
    # Not anew for each action: what the first leaves with the libraries, the others find there.
    before = torch.cuda.memory_allocated(device)

    def on_gpu(action: Callable[[], None]) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before

    return on_gpu


class _Ledger(TorchDispatchMode):
    """Counts the bytes that operations allocate for their results, for as long as these live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for storage in _storages(result):
            if id(storage) in self._alive:
                continue
            # Views of what was there before are nothing new.
            if given is None:
                given = {id(other) for other in _storages((*args, *(kwargs or {}).values()))}
            if id(storage) not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def end(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, end)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """Of what an operation takes or gives: tensors, and lists and tuples of them."""
    if isinstance(values, Tensor):
        yield values.untyped_storage()
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _storages(value)


def _tensors_of(state: RunState) -> Iterable[Tensor]:
    """The network's, its moving average's and the optimiser's, as far as there are any yet."""
    ema = getattr(state, "ema", None)
    modules = [state.network] if ema is None else [state.network, ema]
    yield from itertools.chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
    for kept in state.weight_optimizer.state.values():
        yield from (value for value in kept.values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _bytes_to_come(optimizer: torch.optim.Optimizer) -> int:
    """What the optimiser will keep for the weights that it has not moved yet."""
    total = 0
    for group in optimizer.param_groups:
        copies = 3 if group.get("amsgrad") else 2 if "betas" in group else int(group["momentum"] > 0)
        total += copies * _bytes(weight for weight in group["params"] if weight not in optimizer.state)
    return total
