"""Whether two runs with the same seed, and a resumed run, end with the same bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoreid import train
from autoreid.checkpoint import CheckpointFolder
from benchmarks.gpu.harness import Case, Check, Figures
from benchmarks.gpu.recipes import overrides, recipe

#: Titles and recipes, with overrides.
PLANS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("quickstart, first order", "quickstart.yaml", ()),
    ("quickstart, second order", "quickstart.yaml", ("search.order=second",)),
    ("osnet_ain", "osnet_ain_quickstart.yaml", ("training.warmup_epochs=0",)),
)
SHORT = ("training.epochs=1", "search.warmup_epochs=0", "checkpoint.every_steps=3")
#: The parts of the state that are compared.
PARTS = ("network", "weight_optimizer", "alphas", "alpha_optimizer")


def tensors_of(value: Any, name: str = "") -> dict[str, Tensor]:
    """Return all tensors in nested mappings and lists, by their paths."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {}
    return {path: found for key, inner in items for path, found in tensors_of(inner, f"{name}.{key}").items()}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Return the paths of the tensors that are not bit-identical, or that are missing on one side."""
    return [
        name
        for name in sorted({*one, *other})
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    ]


def run(check: Check, name: str, changes: tuple[str, ...], output: Path) -> Path:
    """Run or resume a search with the package's command, and return its folder."""
    config = recipe(check, name, *changes, f"output_dir={output}")
    path = check.scratch / f"{output.name}.yaml"
    path.write_text(config.to_yaml())
    if status := train.main(["--config", str(path)]):
        raise RuntimeError(f"python -m autoreid.train ended with status {status}")
    return output / config.task_name


def final_state(folder: Path) -> dict[str, Tensor]:
    """Return the tensors in the last checkpoint of a run."""
    saved = CheckpointFolder(folder / "checkpoints", keep_last=2).load_latest()
    assert saved is not None
    return tensors_of({part: saved["state"][part] for part in PARTS})


def interrupted(finished: Path, output: Path) -> None:
    """Copy the folder of a finished run, as if the run had been killed after its first checkpoint."""
    copy = output / finished.name
    shutil.copytree(finished, copy)
    checkpoints = CheckpointFolder(copy / "checkpoints", keep_last=2)
    for step in checkpoints.steps()[1:]:
        checkpoints.path(step).unlink()
    (copy / "result.json").unlink()


def compare(check: Check, name: str, changes: tuple[str, ...]) -> Figures:
    """Compare two runs, and a third one that is resumed in the middle."""
    base = check.scratch / "determinism"
    shutil.rmtree(base, ignore_errors=True)
    finished = run(check, name, changes, base / "first")
    again = run(check, name, changes, base / "second")
    interrupted(finished, base / "resumed")
    resumed = run(check, name, changes, base / "resumed")
    result = json.loads((finished / "result.json").read_text())
    state = final_state(finished)
    return {
        "steps": result["steps"],
        "images_a_second": round(result["images_per_second"]),
        "different_again": differing(state, final_state(again)),
        "different_resumed": differing(state, final_state(resumed)),
        "tensors": len(state),
    }


def cases(check: Check) -> Iterator[Case]:
    """Yield searches in the deterministic mode."""
    for title, name, changes in check.pick(PLANS, PLANS[:1]):
        more = check.pick((), ("data.workers=0",))
        modes = overrides(("deterministic",))
        action = partial(compare, check, name, (*SHORT, *changes, *more, *modes))
        yield Case(f"{title}, deterministic", action, 15, "0 differ")
