"""Measure time, memory, kernels, and the host's waits for the device."""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.harness import ROOT, Figures

Action = Callable[[], object]
#: CUDA calls that launch work on the device.
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Set whether convolutions and products of float32 tensors may use TF32, for the duration of the `with` block."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def clock(action: Action, device: torch.device, rounds: int = 5, warm: int = 2) -> dict[str, float]:
    """Measure the median milliseconds of a call.

    On a CPU the action is called only once, as a test.

    Returns:
        `ms` until the device has finished, and `host_ms` until the call returns. If both are about equal, the action is
        limited by the host's launches.
    """
    if device.type != "cuda":
        rounds, warm = 1, 0
    for _ in range(warm):
        action()
    whole, host = [], []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        action()
        host.append(1e3 * (time.perf_counter() - started))
        synchronize(device)
        whole.append(1e3 * (time.perf_counter() - started))
    return {"ms": round(statistics.median(whole), 3), "host_ms": round(statistics.median(host), 3)}


def microseconds(action: Action, device: torch.device, calls: int = 30) -> float:
    """Return the device time of one call in microseconds: the median of three runs of many calls."""
    if device.type != "cuda":
        calls = 1
    times = []
    for _ in range(3):
        action()
        synchronize(device)
        started = time.perf_counter()
        for _ in range(calls):
            action()
        synchronize(device)
        times.append(1e6 * (time.perf_counter() - started) / calls)
    return round(statistics.median(times), 1)


def peak_gigabytes(action: Action, device: torch.device) -> float | None:
    """Return the peak memory that an action allocates in addition to existing tensors; None on a CPU."""
    if device.type != "cuda":
        action()
        return None
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    action()
    synchronize(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 1e9, 3)


def count_kernels(action: Action, device: torch.device, longest: int = 10) -> Figures:
    """Count the kernels of an action with torch's profiler; on a CPU, torch's operations.

    Returns:
        `kernels`, `copies` (and fills) of memory, `launches` by the host, `busy_ms` of the device, and the `longest`
        kernels as [name, count, milliseconds].
    """
    on_cuda = device.type == "cuda"
    activity, kind = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if on_cuda else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    with profile(activities=[activity], acc_events=True) as found:
        action()
        synchronize(device)
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    counts: Counter[str] = Counter()
    nanoseconds: Counter[str] = Counter()
    launches = 0
    # Raw events, because profile.events() takes many seconds for the 100,000 events of a search step.
    for event in found.profiler.kineto_results.events():
        name = event.name()
        if event.device_type() == kind and (on_cuda or name.startswith("aten::")):
            counts[name[:90]] += 1
            nanoseconds[name[:90]] += event.duration_ns()
        else:
            launches += name.startswith(_LAUNCHES)
    copies = sum(count for name, count in counts.items() if name.startswith(("Memcpy", "Memset")))
    return {
        "kernels": counts.total() - copies,
        "copies": copies,
        "launches": launches,
        "busy_ms": round(nanoseconds.total() / 1e6, 2),
        "longest": [
            [name, counts[name], round(ns / 1e6, 2)] for name, ns in nanoseconds.most_common(longest)
        ],
    }


def count_waits(action: Action, device: torch.device) -> Figures:
    """Count how often the host waits for the device, as reported by torch; return nothing on a CPU.

    Returns:
        `waits`, and `waits_at`: the lines of this repository that caused them, each as [line, count].
    """
    if device.type != "cuda":
        action()
        return {}
    with noting_waits() as found:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"waits": found.total(), "waits_at": [list(pair) for pair in found.most_common(20)]}


@contextmanager
def noting_waits() -> Iterator[Counter[str]]:
    """Count torch's warnings about synchronising operations, by the innermost line of the package on the stack."""
    found: Counter[str] = Counter()

    def show(  # called within the operation, when its callers are still on the stack
        message: Warning | str,
        category: type[Warning],  # noqa: ARG001
        filename: str,  # noqa: ARG001
        lineno: int,  # noqa: ARG001
        file: TextIO | None = None,  # noqa: ARG001
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        if "synchronizing CUDA operation" in str(message):
            found[_innermost_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield found


def _innermost_line() -> str:
    frame = sys._getframe(1)
    package = f"{ROOT / 'autoreid'}/"
    while frame.f_back is not None:
        if frame.f_code.co_filename.startswith(package):
            return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the package"
