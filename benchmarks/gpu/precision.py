"""The second-order gradient of the alphas in each precision, compared with float64 for the same weights and images."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from autoreid.config import Config
from autoreid.data.loaders import Batch
from autoreid.distributed import StopSignal, World
from autoreid.search.task import SearchTask
from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.recipes import build, overrides, placed, recipe

#: Steps before the gradients are compared, because the alphas have little effect at the start.
STEPS = 20
SMALL = ("data.batch_size=32", "data.workers=0")
Batches = tuple[Batch, Batch]


def search(config: Config, world: World) -> SearchTask:
    """Return the search of a config."""
    task = build(config, world)
    assert isinstance(task, SearchTask)
    return task


def gradient(task: SearchTask, batches: Batches) -> Tensor:
    """Return the gradient of the alphas at the state of a search, as one float64 vector."""
    task.state.set_learning_rate(task.learning_rate())
    found, _ = task.architect.gradients(*batches, task.state.step)
    return torch.cat([part.double().flatten() for part in found])


def in_float64(task: SearchTask, batches: Batches) -> Tensor:
    """Return the gradient of the alphas with weights, alphas, momentum and images in float64."""
    task.state.network.double()
    task.state.alphas.double()
    for kept in task.state.weight_optimizer.state.values():
        kept |= {key: value.double() for key, value in kept.items() if isinstance(value, Tensor)}
    one, other = (batch._replace(images=batch.images.double()) for batch in batches)
    return gradient(task, (one, other))


def measure(check: Check) -> Figures:
    """Measure the cosine similarity with the float64 gradient and the relative error, in each precision."""
    config = recipe(check, "darts_triplet.yaml", *SMALL, "search.order=first")
    with placed(config) as world:
        return _measure(check, config, world)


def _measure(check: Check, config: Config, world: World) -> Figures:
    trained = search(config, world)
    for _ in range(check.pick(STEPS, 2)):
        trained.step(StopSignal())
    state = trained.state.state_dict()
    alpha_stream = trained.state.alpha_stream
    assert alpha_stream is not None
    batches = next(alpha_stream).to(world.device), next(trained.state.stream).to(world.device)

    def found(modes: tuple[str, ...], reference: bool = False) -> Tensor:
        task = search(recipe(check, "darts_triplet.yaml", *SMALL, *overrides(modes)), world)
        task.state.load_state_dict(copy.deepcopy(state))
        return in_float64(task, batches) if reference else gradient(task, batches)

    expected = found(("float32", "alphas in float32"), reference=True)
    figures: Figures = {}
    for precision in ("float32", "tf32", "bfloat16"):
        vector = found((precision, f"alphas in {precision}"))
        figures[f"{precision}_cosine"] = round(float(torch.cosine_similarity(vector, expected, 0)), 4)
        figures[f"{precision}_error"] = round(float((vector - expected).norm() / expected.norm()), 4)
    return figures


def cases(check: Check) -> Iterator[Case]:
    """Yield one case, because networks and batches are the same in all precisions."""
    yield Case("darts_triplet, second order, batch 32, against float64", lambda: measure(check), 30)
