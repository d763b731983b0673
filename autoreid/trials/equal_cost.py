"""Compare searches with random sampling at equal cost: what is the best network that some hours of computing give?"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

#: Cost in seconds and mAP, as the numbers of networks increase.
Curve = list[tuple[float, float]]


def expected_best(values: Sequence[float], count: int) -> float:
    """Return the expected maximum of `count` of the values, sampled without replacement.

    The i-th smallest of n values is the maximum of C(i - 1, count - 1) of the C(n, count) subsets.
    """
    subsets = comb(len(values), count)
    ordered = enumerate(sorted(values))
    return sum(comb(place, count - 1) / subsets * value for place, value in ordered)


def cost_curve(values: Sequence[float], seconds: Sequence[float]) -> Curve:
    """Return the expected mAP of the best of 1, 2, ... networks, and what these cost on average.

    Args:
        values: mAP of each network whose training did not fail.
        seconds: cost of each network, failed ones included: its training, and its search if it was found. The others
            bear the cost of failed ones.
    """
    each = sum(seconds) / len(values)
    return [(count * each, expected_best(values, count)) for count in range(1, len(values) + 1)]


def at_equal_cost(found: Curve, random: Curve) -> tuple[int, int] | None:
    """Return how many found and random networks cost the same: as many as the results of both allow.

    The random networks may cost less than one training more or less. None if not even one found network is paid for.
    """
    budget = min(found[-1][0], random[-1][0])
    num_found = sum(cost <= budget * (1 + 1e-9) for cost, _ in found)
    if not num_found:
        return None
    spent = found[num_found - 1][0]
    nearest = min(range(len(random)), key=lambda place: abs(random[place][0] - spent))
    return num_found, nearest + 1
