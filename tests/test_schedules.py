from __future__ import annotations

import math

import pytest
import torch

from autoreid.training.schedules import cosine


def test_cosine_is_torchs_schedule():
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.001)
    for step in range(41):
        assert cosine(step, 40, 0.1, 0.001) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_cosine_at_its_ends_and_after():
    assert cosine(0, 10, 0.1, 0.01) == pytest.approx(0.1)
    assert cosine(5, 10, 0.1, 0.01) == pytest.approx(0.055)
    assert cosine(10, 10, 0.1, 0.01) == cosine(25, 10, 0.1, 0.01) == 0.01
    assert math.isclose(cosine(3, 10, 0.2, 0.2), 0.2)
