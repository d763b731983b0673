"""The train command in float64: python -m tests.helpers.float64 --config FILE, also under torchrun.

Rounding must not hide or show anything: Adam makes a step of the learning rate out of the least gradient, and
instance norm over a few pixels multiplies what float32 rounds, tenfold and more a step.
"""

from __future__ import annotations

import sys

import torch

from autoreid import train
from autoreid.data.loaders import Batch


def compute_in_float64() -> None:
    """Makes this process build and feed every network in float64."""
    torch.set_default_dtype(torch.float64)
    moved = Batch.to
    Batch.to = lambda batch, *to: (on := moved(batch, *to))._replace(images=on.images.double())  # type: ignore[method-assign]


if __name__ == "__main__":
    compute_in_float64()
    sys.exit(train.main())
