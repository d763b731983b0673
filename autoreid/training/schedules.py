"""Learning rates as functions of the step, so that a checkpoint has no scheduler to save."""

from __future__ import annotations

import math

from autoreid.config import Training


def cosine(step: int, steps: float, start: float, end: float) -> float:
    """Return half a cosine from `start` at step 0 to `end` at step `steps` (SGDR, arXiv 1608.03983, eq. 5)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def learning_rate(training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the weights, with the schedule and the warm-up of the config.

    Args:
        step: index of the step, from 0.
    """
    if training.schedule == "cosine":
        flat = training.flat_epochs * steps_per_epoch
        steps = training.epochs * steps_per_epoch - flat
        rate = cosine(max(step - flat, 0), steps, training.learning_rate, training.final_learning_rate)
    else:
        passed = sum(step // steps_per_epoch >= milestone for milestone in training.milestones)
        rate = training.learning_rate * training.decay**passed
    warmup = training.warmup_epochs * steps_per_epoch
    return rate * min((step + 1) / warmup, 1.0) if warmup else rate
