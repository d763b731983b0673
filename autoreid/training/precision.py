"""The precision in which GPUs compute a network: IEEE float32, TF32 or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from autoreid.config import Precision


@contextmanager
def allowing_tf32(precision: Precision, device: torch.device) -> Iterator[None]:
    """Sets whether convolutions and matrix products may use TF32, in forward and backward passes.

    Outside of this context torch's own defaults hold: TF32 in convolutions but not in matrix products. On CPUs it
    changes nothing.
    """
    if device.type != "cuda":
        yield
        return
    # Not `fp32_precision`, which torch 2.6 does not have: torch refuses to mix the two.
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = cublas.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


@dataclass
class PassPrecision:
    """The precision of a network's passes on a device."""

    precision: Precision
    device: torch.device

    def backends(self) -> AbstractContextManager[None]:
        """Returns the context for forward passes together with their backward passes: it sets the TF32 flags."""
        return allowing_tf32(self.precision, self.device)

    def autocast(self) -> torch.autocast:
        """Returns the context for forward passes alone; backward passes follow their forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
