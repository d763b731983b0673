"""The precision of a network's forward and backward passes: float32, TF32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from autoreid.config import Precision


@contextmanager
def allowing_tf32(precision: Precision, device: torch.device) -> Iterator[None]:
    """Allow TF32 in convolutions and matrix products, or forbid it if the precision is float32.

    The previous flags are restored at the end. By default, torch allows TF32 in convolutions only. On CPUs this context
    does nothing.
    """
    if device.type != "cuda":
        yield
        return
    # torch 2.6 has no `fp32_precision`, and newer versions refuse to mix it with these flags.
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = cublas.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


@dataclass
class PassPrecision:
    """The contexts that set the precision of a network's passes on a device."""

    precision: Precision
    device: torch.device

    def backends(self) -> AbstractContextManager[None]:
        """Return the context that sets the TF32 flags. Use it around forward and backward passes."""
        return allowing_tf32(self.precision, self.device)

    def autocast(self) -> torch.autocast:
        """Return the autocast context. Use it around forward passes only: a backward pass uses the same types."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
