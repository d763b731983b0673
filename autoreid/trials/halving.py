"""Successive halving: the better half of the entries is trained longer, until one is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

#: Trains entries for some epochs; returns the score of each, -inf if it failed; None if a stop signal has arrived.
Measure = Callable[[Sequence[int], int], Sequence[float] | None]


class Round(NamedTuple):
    """A round of a tournament.

    Attributes:
        epochs: how long its entries were trained.
        scores: by entry.
        kept: the entries of the next round; after the last round the winner.
    """

    epochs: int
    scores: dict[int, float]
    kept: list[int]


def halve(count: int, epochs: int, measure: Measure) -> list[Round] | None:
    """Run a tournament of `count` entries, numbered from 0; equal scores are ranked by number.

    Each round trains twice as long as the previous one, from new weights. Trainings are not continued, because the
    learning-rate schedule depends on the length of the training: after a continued training, the learning rate would
    have been lowered twice. It also makes every training a unit of work that any process can do.

    Args:
        epochs: how long the first round trains.

    Returns:
        The rounds; none if there is only one entry. None if a stop signal has arrived.
    """
    rounds: list[Round] = []
    entries = list(range(count))
    while len(entries) > 1:
        scores = measure(entries, epochs)
        if scores is None:
            return None
        by_entry = dict(zip(entries, scores, strict=True))
        ranked = sorted(entries, key=lambda entry: -by_entry[entry])
        entries = sorted(ranked[: (len(ranked) + 1) // 2])
        rounds.append(Round(epochs, by_entry, entries))
        epochs *= 2
    return rounds
