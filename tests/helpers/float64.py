"""The train command in float64: python -m tests.helpers.float64 --config FILE, also under torchrun.

In float32, rounding errors would hide real differences: Adam turns even the smallest gradient into a step of the size
of the learning rate, and instance norm over a few pixels multiplies rounding errors at least tenfold in each step.
"""

from __future__ import annotations

import sys

import torch

from autoreid import train
from autoreid.data.loaders import Batch


def compute_in_float64() -> None:
    """Make this process build and feed all networks in float64."""
    torch.set_default_dtype(torch.float64)
    original = Batch.to
    Batch.to = lambda batch, *to: (on := original(batch, *to))._replace(images=on.images.double())  # type: ignore[method-assign]


if __name__ == "__main__":
    compute_in_float64()
    sys.exit(train.main())
