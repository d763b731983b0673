"""Upper limits of the device: memory bandwidth, matrix products per second, and the cost of a launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import clock, microseconds, tf32


def memory(check: Check) -> Figures:
    """Measure the bandwidth of copies within device memory, and from the host."""
    device, size = check.device, check.pick(2**28, 2**16)
    source, target = torch.randn(size, device=device), torch.empty(size, device=device)
    figures = {
        "copy_tb_a_second": 2 * source.nbytes / microseconds(lambda: target.copy_(source), device) / 1e6
    }
    for name, pinned in (("pinned", device.type == "cuda"), ("pageable", False)):
        host = torch.empty(size // 4, pin_memory=pinned)
        part = target[: size // 4]
        taken = microseconds(
            lambda part=part, host=host: part.copy_(host, non_blocking=True),  # type: ignore[misc]
            device,
            5,
        )
        figures[f"from_{name}_gb_a_second"] = host.nbytes / taken / 1e3
    return {name: round(value, 3) for name, value in figures.items()}


def products(check: Check) -> Figures:
    """Measure products of square matrices in each precision."""
    n = check.pick(8192, 64)
    figures = {}
    for precision in ("float32", "tf32", "bfloat16"):
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        one, other = (torch.randn(n, n, device=check.device, dtype=dtype) for _ in range(2))
        with tf32(precision != "float32"):
            taken = microseconds(lambda one=one, other=other: one @ other, check.device, 5)  # type: ignore[misc]
        figures[f"{precision}_tflops"] = round(2 * n**3 / taken / 1e6, 1)
    return figures


def launches(check: Check) -> Figures:
    """Measure an operation on a single number, without autograd, and forward and backward with autograd."""
    count = check.pick(1000, 10)
    number = torch.ones(1, device=check.device, requires_grad=True)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(count):
                number.mul(1.0)

    def both() -> None:
        product = number
        for _ in range(count):
            product = product * 1.0
        product.backward()

    return {
        "launch_us": round(1e3 * clock(forward, check.device)["ms"] / count, 2),
        "autograd_us": round(1e3 * clock(both, check.device)["ms"] / count, 2),
    }


def cases(check: Check) -> Iterator[Case]:
    """Yield a case each for memory, products and launches."""
    yield Case("memory", lambda: memory(check))
    yield Case("matrix products", lambda: products(check))
    yield Case("small operations", lambda: launches(check))
