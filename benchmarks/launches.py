"""Count kernels, bytes and host waits of a search step on a GPU, without a GPU.

The step runs on torch's meta device, which takes the same branches as a GPU but computes nothing. An operation
counts as one kernel, the backward pass of a convolution as one for each gradient, and a `_foreach_` operation as
one for each group of tensors that fits into a launch. Operations that a library splits into several kernels are not
known here. The bytes of an operation are those of its operands and results. The host waits where it reads a value
from the device, or copies between host and device with a blocking copy.

    python benchmarks/launches.py            print a table of steps of configs/darts_triplet.yaml
    python benchmarks/launches.py --waits    also print the lines that wait
    python benchmarks/launches.py --json     print one JSON object
"""

from __future__ import annotations

import argparse
import json
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from autoreid.commands.train import build_task
from autoreid.data.training_data import generate_people
from autoreid.distributed import StopSignal, World
from autoreid.recipes import load_config
from autoreid.search.task import SearchTask
from autoreid.training.task import TrainTask

ROOT = Path(__file__).resolve().parent.parent
META = torch.device("meta")

#: Operations without a kernel.
FREE = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh",
    "detach", "alias", "resize_", "set_", "_local_scalar_dense", "sym_size", "is_same_size",
}  # fmt: skip
#: Number of tensors per kernel of a `_foreach_` operation, by its number of tensor lists.
FOREACH_DEPTH = {1: 110, 2: 64, 3: 48, 4: 36}


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in the arguments or results of an operation."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


class Launches(TorchDispatchMode):
    """Counts operations on tensors of the meta device, and returns dummy values where the host reads them.

    Attributes:
        operations: number of kernels by operation.
        bytes: bytes that the kernels read and write.
        waits: number of host waits by line of the package.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes = 0
        self.waits: Counter[str] = Counter()
        self._host_data = _HostData(self.wait)

    def __enter__(self) -> Launches:
        self._host_data.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._host_data.__exit__(*error)

    @property
    def kernels(self) -> int:
        """The number of kernels of all operations."""
        return sum(self.operations.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and given[0].device == META:
            self.wait()
            return True if given[0].dtype == torch.bool else 1.0
        if name == "nonzero" and given[0].device == META:
            self.wait()
            return torch.zeros(1, given[0].dim(), dtype=torch.int64, device=META)
        target = kwargs.get("device")
        if name == "_to_copy" and target is not None and given[0].device != torch.device(target):
            return self._move(func, args, kwargs, given[0], torch.device(target))
        result = func(*args, **kwargs)
        made = list(tensors_in(result))
        if any(tensor.device == META for tensor in made):
            self._count(func, name, args, given, made)
        return result

    def _move(self, func: Any, args: Any, kwargs: Any, source: Tensor, target: torch.device) -> Any:
        """Copy between host and device; the host waits unless the copy is non-blocking and goes to the device."""
        if not kwargs.get("non_blocking") or target != META:
            self.wait()
        self.operations["copy between host and device"] += 1
        if target == META:
            return func(*args, **kwargs)
        return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=target)

    def _count(self, func: Any, name: str, args: Any, given: list[Tensor], made: list[Tensor]) -> None:
        if name in FREE or _is_view(func):
            return
        kernels = 1
        if name == "convolution_backward":
            kernels = sum(args[-1])  # one for each required gradient
        elif name.startswith("_foreach"):
            lists = [value for value in args if isinstance(value, list | tuple) and [*tensors_in(value)]]
            count = len(made or lists[0])
            depth = FOREACH_DEPTH[min(4, len(lists) + bool(made))]
            # torch launches a separate kernel for each tensor that is not dense.
            kernels = -(-count // depth) if all(map(_is_dense, tensors_in(lists))) else count
        self.operations[name] += kernels
        self.bytes += sum(tensor.nbytes for tensor in given) + sum(tensor.nbytes for tensor in made)

    def wait(self) -> None:
        """Count a wait at the innermost line of the package."""
        frames = [frame for frame in traceback.extract_stack() if f"{ROOT}/autoreid/" in frame.filename]
        place = (
            f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "elsewhere"
        )
        self.waits[place] += 1


class _HostData(TorchFunctionMode):
    """Finds copies to the device from Python lists and numbers, which do not appear as operations."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self.wait = wait

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            if result.device == META and not any(given.device == META for given in tensors_in(args[-1:])):
                self.wait()
        elif func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == META:
            keys = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(key, list | np.ndarray) or _on_host(key) for key in keys):
                self.wait()
        return result


def _on_host(key: object) -> bool:
    return isinstance(key, Tensor) and key.device != META


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the values of a tensor have no gaps between them, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _is_view(func: Any) -> bool:
    return any(
        returned.alias_info is not None and not returned.alias_info.is_write
        for returned in func._schema.returns
    )


def build(folder: str, *changes: str, recipe: str = "darts_triplet.yaml") -> SearchTask | TrainTask:
    """Return the task of a recipe on the meta device, with few synthetic people and the recipe's image size."""
    people = {"train_identities": 24, "test_identities": 2, "images_per_identity": 8, "cameras": 2}
    config = load_config(
        ROOT / "configs" / recipe,
        [
            f"data.root={folder}",
            "data.sources=[people]",
            "data.targets=[]",
            "data.combine_all=false",
            f"data.synthetic={{people: {json.dumps(people)}}}",
            "data.batch_size=64",
            "data.workers=0",
            "data.cache=null",
            "evaluation.split=held_out",
            "data.held_out_fraction=0.1",
            "search.warmup_epochs=0",  # a step of alphas and weights
            *changes,
        ],
    )
    generate_people(config.data)
    _, task = build_task(config, World(0, 1, 0, META))
    precisions, optimizers = [task.precision], [task.state.weight_optimizer]
    if isinstance(task, SearchTask):
        precisions.append(task.architect.precision)
        optimizers.append(task.state.alpha_optimizer)
    for precision in precisions:
        precision.device = torch.device("cpu")  # autocast, which stays off, does not support the meta device
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["foreach"] = True  # torch's default on GPUs
    return task


def count_step(task: SearchTask | TrainTask) -> Launches:
    """Return the launches of the second step, when the optimisers have their buffers."""
    stop = StopSignal()
    with Launches():
        task.step(stop)
    with Launches() as found:
        task.step(stop)
    return found


def count_pass(task: SearchTask | TrainTask) -> Launches:
    """Return the launches of a forward and backward pass of the supernet."""
    assert isinstance(task, SearchTask)
    batch = next(task.state.stream).to(META)
    with Launches():
        task.dry_run(iter([batch, batch]))
    mixing = {
        name: torch.rand(group.shape, device=META, requires_grad=True)
        for name, group in task.space.choices().items()
    }
    with Launches() as found:
        embedding, logits = task.state.network(batch.images, mixing)
        (embedding.sum() + logits.sum()).backward()
    return found


def main() -> None:
    """Count, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--waits", action="store_true", help="print the lines that wait")
    parser.add_argument("--operations", action="store_true", help="print the kernels of each operation")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found: dict[str, Launches] = {}
    with tempfile.TemporaryDirectory() as folder:
        found["a pass"] = count_pass(build(folder, "search.order=first"))
        for order in ("first", "second"):
            found[f"a step, {order} order"] = count_step(build(folder, f"search.order={order}"))
    rows = {
        name: {"kernels": one.kernels, "gigabytes": one.bytes / 1e9, "waits": sum(one.waits.values())}
        for name, one in found.items()
    }
    if arguments.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        print(f"{name:<24}" + "".join(f"{key} {value:<12,.0f}" for key, value in row.items()))
        if arguments.waits:
            for place, count in found[name].waits.most_common():
                print(f"    {count:>4} × {place}")
        if arguments.operations:
            for operation, count in found[name].operations.most_common(40):
                print(f"    {count:>6} × {operation}")


if __name__ == "__main__":
    main()
