"""Build the tasks of the tiny search and training, in one process or several ranks, and run their steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from autoreid import distributed
from autoreid.data.training_data import build_search_data, build_training_data
from autoreid.distributed import StopSignal, World
from autoreid.recipes import load_config
from autoreid.search.build import build_search
from autoreid.search.cost import SearchCost
from autoreid.search.read_out import ReadOut
from autoreid.search.task import SearchTask
from autoreid.training.task import TrainTask, build_training
from tests.helpers.float64 import compute_in_float64
from tests.helpers.tiny import OSNET_TRAINING, tiny_config

STEPS = 2


def build_search_task(folder: Path, **changes: Any) -> SearchTask:
    """Return the task of the tiny search, in a single process on the CPU."""
    config = tiny_config(folder, **changes)
    with distributed.setup("cpu") as world:
        return build_search(config, build_search_data(config, world), world)


def build_training_task(folder: Path, **changes: Any) -> TrainTask:
    """Return the task of the tiny training, in a single process on the CPU."""
    config = tiny_config(folder, **(OSNET_TRAINING | changes))
    with distributed.setup("cpu") as world:
        return build_training(config, build_training_data(config, world), world)


def search_task_of(path: Path, world: World) -> SearchTask:
    """Return this rank's task of the search in a config file, whose synthetic data must exist."""
    config = load_config(path)
    return build_search(config, build_search_data(config, world), world)


def search_in_float64(world: World, path: Path) -> tuple[dict, dict, torch.Tensor, str]:
    """Return alphas, weights, losses of both levels, and the digest of the alphas after two steps."""
    compute_in_float64()
    task = search_task_of(path, world)
    losses = []
    for _ in range(STEPS):
        _, metrics = task.step(StopSignal())
        losses.append(distributed.average_and_agree([metrics.double()])[0][0])
    alphas = {name: value.detach() for name, value in task.state.alphas.named_parameters()}
    return alphas, task.state.network.state_dict(), torch.stack(losses), task.state.alphas.digest()


def train_in_float64(world: World, path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a training after two steps."""
    compute_in_float64()
    config = load_config(path)
    task = build_training(config, build_training_data(config, world), world)
    for _ in range(STEPS):
        task.step(StopSignal())
    return task.state.network.state_dict()


def count_collectives(world: World, path: Path) -> tuple[dict[str, int], int]:
    """Return the numbers of collectives in two steps of a search, and the number of its weight tensors."""
    task = search_task_of(path, world)
    calls = {"all_reduce": 0, "others": 0, "buckets": 0}
    original = dist.all_reduce

    def counted(*arguments, **options):
        calls["all_reduce"] += 1
        return original(*arguments, **options)

    def hook(group, bucket):
        calls["buckets"] += 1
        return allreduce_hook(group, bucket)

    def forbidden(*arguments, **options):
        calls["others"] += 1

    dist.all_reduce, dist.all_gather = counted, forbidden
    task.network.register_comm_hook(None, hook)
    tensors = len(list(task.state.network.parameters()))
    for _ in range(STEPS):
        task.step(StopSignal())
    return calls, tensors


def read_out_of(task: SearchTask, cost: SearchCost | None = None) -> ReadOut:
    """Return the read-out of a search, within the limit of a cost."""
    state = task.state
    return ReadOut(task.config, task.space, state.network, task.data, task.world, StopSignal(), cost)


class Measured(NamedTuple):
    """Stands for a retrieval."""

    map: float
