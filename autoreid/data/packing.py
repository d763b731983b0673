"""Several tensors in one buffer, so that a batch is copied to a device in a single transfer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Alignment of each tensor in bytes: the width of a vector load, and enough for a view as any dtype.
_ALIGNMENT = 16


class Packed(NamedTuple):
    """Named tensors that share one buffer.

    A named tuple, so that a DataLoader can pin the buffer and send it between processes.

    Attributes:
        buffer: (bytes,) uint8.
        layout: name -> dtype and shape, in buffer order.
    """

    buffer: Tensor
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor | None], **blank: tuple[int, ...]) -> Packed:
        """Copy non-empty tensors into one buffer; values of None are skipped.

        Args:
            blank: shapes of further uint8 tensors, filled with zeros and meant to be modified in place.
        """
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        layout = {name: (torch.uint8, shape) for name, shape in blank.items()}
        layout |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in given.items()}
        *_, (_, _, end) = _places(layout)
        # numpy allocates zeros with calloc, which does not touch a page before it is written to.
        packed = cls(torch.from_numpy(np.zeros(end, np.uint8)), layout)
        views = packed.tensors()
        for name, tensor in given.items():
            views[name].copy_(tensor)
        return packed

    def to(self, device: torch.device) -> Packed:
        """Copy the buffer to a device; from pinned memory, without waiting for the copy."""
        return self._replace(buffer=self.buffer.to(device, non_blocking=True))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as views of the buffer."""
        return {
            name: self.buffer[start:end].view(self.layout[name][0]).view(self.layout[name][1])
            for name, start, end in _places(self.layout)
        }


def _places(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> Iterator[tuple[str, int, int]]:
    """Yield the name, start and end of each tensor in the buffer, in bytes."""
    end = 0
    for name, (dtype, shape) in layout.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + math.prod(shape) * dtype.itemsize
        yield name, start, end
