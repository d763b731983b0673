"""A step can be read on one screen: few frames lie between it and the loss, and all of them are plain methods."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from autoreid.distributed import StopSignal
from autoreid.losses import RetrievalLoss
from tests.helpers.tasks import build_search_task, build_training_task

PACKAGE = str(Path(__file__).parents[1] / "autoreid")


def frames_to_the_loss(task, monkeypatch):
    """For each loss that a step computes, the names of the package's functions from the step to it."""
    original, seen = RetrievalLoss.forward, []

    def recorded(loss, outputs, labels, *feature_map):
        stack = [frame.function for frame in inspect.stack(0)[1:] if frame.filename.startswith(PACKAGE)]
        seen.append([*reversed(stack[: stack.index("step") + 1]), "forward"])
        return original(loss, outputs, labels, *feature_map)

    monkeypatch.setattr(RetrievalLoss, "forward", recorded)
    task.step(StopSignal())
    return seen


@pytest.mark.parametrize(
    ("changes", "of_alphas", "of_weights"),
    [
        ({"search__order": "first"}, 6, 4),
        ({"search__order": "second"}, 7, 4),
        ({"search__order": "exact"}, 7, 4),
        ({"search__level": "single"}, None, 5),
    ],
    ids=["first", "second", "exact", "single"],
)
def test_a_search(tmp_path, monkeypatch, changes, of_alphas, of_weights):
    *alphas, weights = frames_to_the_loss(build_search_task(tmp_path, **changes), monkeypatch)
    assert max(map(len, alphas), default=None) == of_alphas
    assert len(weights) == of_weights
    assert not [name for frames in [*alphas, weights] for name in frames if name.startswith("<")]


def test_a_training(tmp_path, monkeypatch):
    (frames,) = frames_to_the_loss(build_training_task(tmp_path), monkeypatch)
    assert frames == ["step", "_backward", "_forward", "forward"]
