"""Learning rates as functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 towards `end` at step `steps` (SGDR, arXiv 1608.03983, eq. 5)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(step / steps, 1.0)))
