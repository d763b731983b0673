"""Ranking and re-ranking at the sizes of Market-1501 and MSMT17."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from autoreid.evaluation import RetrievalResult, evaluate_distances, evaluate_retrieval, rerank
from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.meters import peak_gigabytes, synchronize
from benchmarks.ranking import TRAINED, Problem, make_problem

#: Queries, gallery and identities.
SIZES = {"Market-1501": (3_368, 15_913, 750), "MSMT17": (11_659, 82_161, 3_060)}
TINY = (64, 300, 20)


def rerank_and_score(query: Any, gallery: Any, *numbers: Any) -> RetrievalResult:
    """Apply k-reciprocal re-ranking and evaluate the result."""
    return evaluate_distances(rerank(query, gallery), *numbers)


def measure(
    check: Check, evaluate: Callable[..., RetrievalResult], problem: Problem, on_cpu_too: bool
) -> Figures:
    """Measure the seconds of a call with features on the device, after a first call that loads CUDA's libraries."""
    device = check.device
    features = (torch.from_numpy(side).to(device) for side in problem[:2])
    there = (*features, *problem[2:])
    evaluate(*there)
    synchronize(device)
    started = time.perf_counter()
    found = evaluate(*there)
    synchronize(device)
    figures: Figures = {
        "s": round(time.perf_counter() - started, 3),
        "map": round(found.map, 6),
        "peak_gb": peak_gigabytes(partial(evaluate, *there), device),
    }
    if on_cpu_too:
        started = time.perf_counter()
        figures["map_difference"] = abs(found.map - evaluate(*problem).map)
        figures["cpu_s"] = round(time.perf_counter() - started, 3)
    return figures


def cases(check: Check) -> Iterator[Case]:
    """Yield ranking at both sizes, and re-ranking at the smaller one."""
    for name, evaluate, on_cpu_too, goal in (
        ("Market-1501", evaluate_retrieval, True, "0.15 s"),
        ("Market-1501", rerank_and_score, True, "2 s"),
        ("MSMT17", evaluate_retrieval, False, ""),
    ):

        def action(
            name: str = name,
            evaluate: Callable[..., RetrievalResult] = evaluate,
            on_cpu_too: bool = on_cpu_too,
        ) -> Figures:
            problem = make_problem(*check.pick(SIZES[name], TINY), TRAINED)
            return measure(check, evaluate, problem, on_cpu_too)

        what = "ranking" if evaluate is evaluate_retrieval else "re-ranking"
        yield Case(f"{what}, {name}'s size", action, 10, goal)
