"""Count copies between host and device on a machine without a GPU, with the meta device instead of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
#: Operations that read values, or that have results with sizes that depend on values.
READING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "equal", "is_nonzero")


@dataclass
class Traffic:
    """Copies from the host to the meta device."""

    copies: int = 0


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count copies to the meta device, and fail at any other operation at which the host would wait for a GPU.

    Such operations read a value, turn a Python list into a tensor on the device or into an index, or mix devices.
    """
    found = Traffic()
    with _Operations(found), _Lists():
        yield found


class _Operations(TorchDispatchMode):
    def __init__(self, found: Traffic) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        on_device = any(tensor.is_meta for tensor in given)
        if on_device:
            # A number becomes a tensor without dimensions, which is an argument of the kernel.
            assert all(tensor.is_meta or not tensor.dim() for tensor in given), f"{func} mixes devices"
            assert not func.name().removeprefix("aten::").startswith(READING), f"{func} reads values"
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        assert not on_device or all(tensor.is_meta for tensor in made), f"{func} copies to the host"
        self.found.copies += bool(given) and not on_device and any(tensor.is_meta for tensor in made)
        return result


class _Lists(TorchFunctionMode):
    """Finds lists, which can no longer be seen at the level of dispatched operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor):
            assert isinstance(args[0], torch.Tensor) or not result.is_meta, (
                "a list becomes a tensor on the device"
            )
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, list) for part in index), "a list is used as an index"
        return result


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
