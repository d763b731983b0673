"""What changes over the steps of a search: the temperature and the learning rate of the alphas.

Both are functions of the step, so that there is nothing to save.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoreid.config import Search, Temperature, Training
from autoreid.training.schedules import cosine, learning_rate


@dataclass(frozen=True)
class TemperatureSchedule:
    """The temperature of a search.

    Attributes:
        settings: start, end and shape.
        steps_per_epoch: steps in an epoch.
        epochs: epochs of the search.
    """

    settings: Temperature
    steps_per_epoch: int
    epochs: int

    def at(self, step: int) -> float:
        """Return the temperature after `step` steps."""
        settings = self.settings
        if settings.schedule == "halving":
            halvings = step // self.steps_per_epoch // settings.every_epochs
            return max(settings.end, settings.start * 0.5**halvings)
        steps = settings.reached_at * self.epochs * self.steps_per_epoch
        if settings.schedule == "cosine":
            return cosine(step, steps, settings.start, settings.end)
        return settings.start + (settings.end - settings.start) * min(step / steps, 1.0)


def alpha_learning_rate(search: Search, training: Training, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the alphas after `step` steps, by `search.alpha_schedule`."""
    schedule = search.alpha_schedule or ("weights" if search.alpha_optimizer == "sgd" else "constant")
    if schedule == "weights":
        share = learning_rate(training, step, steps_per_epoch) / training.learning_rate
        return search.alpha_learning_rate * share
    if schedule == "constant":
        return search.alpha_learning_rate
    first = search.warmup_epochs * steps_per_epoch
    steps = training.epochs * steps_per_epoch - first
    return cosine(max(step - first, 0), steps, search.alpha_learning_rate, 0.0)
