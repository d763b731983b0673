"""Compiled supernets: seconds until the first step, and the time of a pass afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import clock, count_kernels, peak_gigabytes, synchronize
from benchmarks.gpu.supernet import Pass

BATCH = 64


class Plan(NamedTuple):
    """A supernet to compile, and the minimum time that this needs."""

    precision: str
    cells_per_stage: tuple[int, ...]
    least_seconds: float


#: Small supernets come first, because compiling the eight cells of the recipe may take minutes.
PLANS = (
    Plan("bfloat16", (1, 1), 30),
    Plan("bfloat16", (2, 2, 2, 2), 100),
    Plan("tf32", (1, 1), 30),
    Plan("tf32", (2, 2, 2, 2), 100),
)
#: Candidate operations in a dry run, in which tracing all seven would take longer than everything else.
FEWER = {"operations": ("skip_connect", "sep_conv_3x3")}


def compare(check: Check, plan: Plan) -> Figures:
    """Compare a compiled pass with an eager one, and with one module for each candidate."""
    settings: dict[str, Any] = check.pick({"cells_per_stage": plan.cells_per_stage}, FEWER)
    single = clock(Pass(check, plan.precision, BATCH, fused=False, **settings), check.device)
    eager = clock(Pass(check, plan.precision, BATCH, **settings), check.device)
    torch.compiler.reset()
    compiled = Pass(check, plan.precision, BATCH, **settings)
    # A dry run traces the network as for inductor, but skips code generation, which takes minutes.
    compiled.network.compile(backend=check.pick("inductor", "aot_eager"))
    started = time.perf_counter()
    compiled()
    synchronize(check.device)
    first = time.perf_counter() - started
    times = clock(compiled, check.device)
    return {
        **times,
        "images_a_second": round(1e3 * len(compiled.images) / times["ms"]),
        "eager_ms": eager["ms"],
        "one_by_one_ms": single["ms"],
        "ratio": round(times["ms"] / single["ms"], 3),
        "peak_gb": peak_gigabytes(compiled, check.device),
        "seconds_to_first_step": round(first, 1),
        **count_kernels(compiled, check.device),
    }


def cases(check: Check) -> Iterator[Case]:
    """Yield a case for each plan, or only one in a dry run."""
    for plan in check.pick(PLANS, PLANS[:1]):
        name = f"compiled, {plan.precision}, {sum(plan.cells_per_stage)} cells, batch {BATCH}"
        yield Case(name, partial(compare, check, plan), check.pick(plan.least_seconds, 5), "ratio 0.25")
