"""Ranks under torchrun compared with one process: their results, and the cost of the process group."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.harness import Case, Check, Figures, call
from benchmarks.gpu.rank_steps import steps_of
from benchmarks.gpu.recipes import overrides, placed, recipe

STEPS = 3
#: SGD, because the first steps of Adam have the same size for any gradient, which hides or enlarges differences.
CHANGES = ("search.alpha_optimizer=sgd", "search.warmup_epochs=0", *overrides(["float32"]))


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor], prefix: str) -> float:
    """Return the largest difference of all values with this prefix, relative to the largest value."""
    names = [name for name in one if name.startswith(prefix)]
    scale = max(float(one[name].abs().max()) for name in names)
    return max(float((one[name] - other[name]).abs().max()) for name in names) / scale


def compare(check: Check, name: str, ranks: int) -> Figures:
    """Compare the same steps in one process and on ranks that share its batch."""
    config = recipe(check, name, *CHANGES)
    steps = check.pick(STEPS, 1)
    with placed(config) as world:
        single = steps_of(config, world, steps)
    if check.device.type == "cuda":
        torch.cuda.empty_cache()  # the first rank computes on the same GPU
    path, output = check.scratch / "ranks.yaml", check.scratch / "ranks.pt"
    path.write_text(config.to_yaml())
    output.unlink(missing_ok=True)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    program = ["-m", "benchmarks.gpu.rank_steps", str(path), str(output), str(steps)]
    status, printed = call([sys.executable, "-m", *launcher, *program], check.seconds_left() - 10)
    print(printed)
    if status:
        raise RuntimeError(f"torchrun ended with status {status}; the log has its output")
    found = torch.load(output, weights_only=True)
    return {
        "ms": found["ms"],
        "one_process_ms": single["ms"],
        "all_reduce_us": found["all_reduce_us"],
        "backend": found["backend"],
        "alphas_difference": largest_difference(single["parameters"], found["parameters"], "alphas."),
        "weights_difference": largest_difference(single["parameters"], found["parameters"], "weights."),
    }


def cases(check: Check) -> Iterator[Case]:
    """Yield one rank, and two if there are two GPUs."""
    counts = check.pick([1, 2] if torch.cuda.device_count() > 1 else [1], [2])
    for ranks in counts:
        for name in check.pick(["quickstart", "darts_triplet"], ["quickstart"]):
            title = f"{name}, {ranks} rank{'s' if ranks > 1 else ''}"
            action = partial(compare, check, f"{name}.yaml", ranks)
            yield Case(title, action, 25, "differences of rounding")
