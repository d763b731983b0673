"""Runs a function on several real processes that form a gloo group."""

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
#: Imported once by the server that ranks are forked from, not by every rank.
PRELOADED = ["pytest", "torch", "autoreid.train", "tests.helpers.tasks", "tests.helpers.runs"]
#: A process that is not part of a group, on the CPU.
ALONE = distributed.World(0, 1, 0, torch.device("cpu"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def forkserver() -> ForkServerContext:
    """Starts processes that have the package and the helpers imported already."""
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
    """What `function(world, *arguments)` returned on each rank; with raises=False, errors stand in for results."""
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
        # Plain bytes: tensors sent as such live in memory that dies with the rank.
        rank, result, trace = pickle.loads(results.get())  # noqa: S301
        if trace and raises:
            raise AssertionError(f"rank {rank} failed:\n{trace}")
        found[rank] = result
    for process in ranks:
        process.join(TIMEOUT_SECONDS)
        assert process.exitcode == 0
    return [found[rank] for rank in range(world_size)]
