"""Runs of the train command in processes of their own, their ends by signals, and what they leave behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoreid import train
from autoreid.checkpoint import load_checkpoint
from autoreid.search.task import SearchTask
from tests.helpers.float64 import compute_in_float64
from tests.helpers.ranks import forkserver, free_port

#: Of the tiny search: 3 steps an epoch, 2 epochs.
STEPS = 6
PATIENCE_SECONDS = 120


def run_train(path: Path) -> None:
    """Runs the train command and exits with its status."""
    torch.set_num_threads(1)
    if os.environ.get("AUTOREID_TEST_FLOAT64"):
        compute_in_float64()
    raise SystemExit(train.main(["--config", str(path)]))


def run_train_with_signal(path: Path, step: int, number: int, rank: int = 0, kind: type = SearchTask) -> None:
    """The same; sends this process a signal while it is in a step (from 1) of a task, if it is the rank."""
    original = kind.step

    def interrupted(task, stop):
        if task.state.step + 1 == step and os.environ.get("RANK", "0") == str(rank):
            os.kill(os.getpid(), number)
        return original(task, stop)

    kind.step = interrupted
    run_train(path)


def _rank(environment: dict[str, str], function: Callable[..., None], arguments: tuple) -> None:
    os.environ.update(environment)
    function(*arguments)


def run_processes(
    function: Callable[..., None], *arguments: Any, ranks: int = 1, float64: bool = False
) -> list[int | None]:
    """Runs a function in one process for each rank; their exit codes."""
    context, port, processes = forkserver(), free_port(), []
    for rank in range(ranks):
        environment = {"AUTOREID_TEST_FLOAT64": "1" if float64 else ""}
        if ranks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(context.Process(target=_rank, args=(environment, function, arguments), daemon=True))
        processes[-1].start()
    for process in processes:
        process.join(PATIENCE_SECONDS)
    return [process.exitcode for process in processes]


def search_outcome(folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """All that a search leaves behind but its timings."""
    run = folder / "runs" / "tiny"
    checkpoint = load_checkpoint(run / "checkpoints" / f"step-{steps:08d}.pt")["state"]
    result = json.loads((run / "result.json").read_text())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for timed in (checkpoint, result, *metrics):
        for key in ("seconds", "restarts", "images_per_second", "data_wait"):
            timed.pop(key, None)
    genotypes = {path.name: path.read_bytes() for path in (folder / "genotypes" / "tiny").glob("*.json")}
    return {"checkpoint": checkpoint, "result": result, "metrics": metrics, "genotypes": genotypes}


def training_outcome(folder: Path) -> dict[str, Any]:
    """The state and the result of a training but for their timings."""
    run = folder / "runs" / "tiny"
    result = json.loads((run / "result.json").read_text())
    state = load_checkpoint(run / "checkpoints" / f"step-{result['steps']:08d}.pt")["state"]
    for timed in (state, result):
        for key in ("seconds", "restarts", "images_per_second"):
            timed.pop(key, None)
    return {"state": state, "result": result}


def restarts(folder: Path) -> int:
    return json.loads((folder / "runs" / "tiny" / "result.json").read_text())["restarts"]


def assert_equal(found: Any, expected: Any, path: str = "") -> None:
    """Bit for bit, naming the first place that differs."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, path
        assert torch.equal(found, expected), path
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_equal(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{path}/{place}")
    else:
        assert found == expected, path
