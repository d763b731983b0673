"""How long a network takes to embed a batch of images."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

#: Passes that are not timed.
WARM_UP = 3
#: Timed passes: as many as fit into the seconds, but between the least and the most.
LEAST, MOST, SECONDS = 20, 100, 10.0


class Latency(NamedTuple):
    """The times of several passes with the same number of images.

    Attributes:
        batch: number of images in a pass.
        p50, p95: the median and the 95th percentile in milliseconds.
        passes: number of timed passes.
    """

    batch: int
    p50: float
    p95: float
    passes: int


def time_pass(
    run: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the milliseconds from the start of a pass until its result is there.

    Args:
        run: does the pass.
        device: where it computes. Calls return before a GPU has finished, so it is waited for before and after.
        clock: returns seconds.
    """
    _wait(device)
    started = clock()
    run()
    _wait(device)
    return 1e3 * (clock() - started)


def measure_latency(
    run: Callable[[], object],
    batch: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time passes with `batch` images: 100, or as many as take 10 s, but at least 20; three more come first.

    The first passes are slower: caches are empty, and libraries choose their algorithms.

    Args:
        run: does a pass.
        device: where it computes.
        clock: returns seconds.
    """
    for _ in range(WARM_UP):
        time_pass(run, device, clock)
    times: list[float] = []
    while len(times) < MOST and (len(times) < LEAST or sum(times) < 1e3 * SECONDS):
        times.append(time_pass(run, device, clock))
    p50, p95 = np.percentile(times, [50, 95]).tolist()
    return Latency(batch, p50, p95, len(times))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
