"""How precisely GPUs compute a network: in IEEE float32, with TF32's shorter factors, or in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autoreid.config import Precision


@contextmanager
def allowing_tf32(precision: Precision, device: torch.device) -> Iterator[None]:
    """For forward passes and their backward passes: whether convolutions and matrix products may use TF32.

    Without it, torch's own defaults hold: TF32 in convolutions, not in matrix products. On CPUs nothing changes.
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


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """For forward passes alone: backward passes follow them by themselves."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
