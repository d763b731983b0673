"""Run the train command in separate processes, send signals to it, and read its results."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autoreid import train
from autoreid.checkpoint import load_checkpoint
from autoreid.recipes import load_config
from autoreid.search.task import SearchTask
from tests.helpers.float64 import compute_in_float64
from tests.helpers.people import place_people
from tests.helpers.ranks import forkserver, free_port

#: Steps of the tiny search: 2 epochs of 3 steps.
STEPS = 6
PATIENCE_SECONDS = 120


def run_train(path: Path) -> None:
    """Run the train command and exit with its status."""
    torch.set_num_threads(1)
    if os.environ.get("AUTOREID_TEST_FLOAT64"):
        compute_in_float64()
    if os.environ.get("RANK", "0") == "0":
        place_people(load_config(path).data)
    raise SystemExit(train.main(["--config", str(path)]))


def run_train_with_signal(path: Path, step: int, number: int, rank: int = 0, kind: type = SearchTask) -> None:
    """Run the train command, and send a signal to the process of a rank while it computes a step.

    Args:
        path: config file.
        step: number of the step, from 1.
        number: the signal.
        kind: class of the task.
    """
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
    """Run a function in one process for each rank, and return the exit codes."""
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
    """Return everything that a search writes, without timings."""
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
    """Return the last checkpoint's state and the result of a training, without timings."""
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
    """Compare nested containers of tensors bit for bit; the error names the first place that differs."""
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
