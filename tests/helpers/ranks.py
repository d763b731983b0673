"""Run a function in several processes that form a gloo process group."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch

from autoreid import distributed

TIMEOUT_SECONDS = 60.0
#: Modules that the fork server imports once for all ranks.
PRELOADED = [
    "pytest",
    "torch",
    "autoreid.commands.train",
    "autoreid.commands.evaluate",
    "tests.helpers.tasks",
    "tests.helpers.runs",
]
#: A single process on the CPU.
ALONE = distributed.World(0, 1, 0, torch.device("cpu"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def forkserver() -> ForkServerContext:
    """Return a multiprocessing context with processes that have already imported the package and the helpers."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _run(
    rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple, results: Any
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    try:
        with distributed.setup("cpu", TIMEOUT_SECONDS) as world:
            results.put(pickle.dumps((rank, function(world, *arguments), None)))
    except Exception as error:
        results.put(pickle.dumps((rank, error, traceback.format_exc())))


def run_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, raises: bool = True
) -> list[Any]:
    """Return the results of `function(world, *arguments)` on all ranks, in rank order.

    Args:
        raises: whether an error on a rank is raised; if not, it is returned instead of the result.
    """
    context = forkserver()
    results = context.SimpleQueue()
    port = free_port()
    ranks = [
        context.Process(target=_run, args=(rank, world_size, port, function, arguments, results), daemon=True)
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    for _ in ranks:
        # Sent as bytes, because tensors would be sent in shared memory that ends with the rank.
        rank, result, trace = pickle.loads(results.get())  # noqa: S301
        if trace and raises:
            raise AssertionError(f"rank {rank} failed:\n{trace}")
        found[rank] = result
    for process in ranks:
        process.join(TIMEOUT_SECONDS)
        assert process.exitcode == 0
    return [found[rank] for rank in range(world_size)]
