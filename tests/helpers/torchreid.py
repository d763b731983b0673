"""Recorded features of torchreid's networks, for weights and images that are given by a formula."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch

FIXTURE = Path(__file__).parents[1] / "data" / "torchreid_models.json"


@cache
def fixtures():
    return json.loads(FIXTURE.read_text())


def their_state(name):
    """Return a state dict with torchreid's names and the fixture's formula."""
    return formula_state(fixtures()[name]["state_dict"])


def formula_state(entries):
    """Return a state dict of named shapes, with the values that recorded features of all code bases belong to."""
    state = {}
    for place, (key, shape) in enumerate(entries):
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
            continue
        numel = math.prod(shape)
        s = np.sin(0.37 * np.arange(numel, dtype=np.float64) + place).reshape(shape)
        if len(shape) > 1:
            s = s * math.sqrt(2 / (numel / shape[0]))
        elif key.endswith(("running_var", "weight")):
            s = 1 + 0.1 * s
        else:
            s = 0.1 * s
        state[key] = torch.from_numpy(s.astype(np.float32))
    return state


def their_images(shape):
    values = 1.5 * np.sin(0.013 * np.arange(math.prod(shape), dtype=np.float64))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)
