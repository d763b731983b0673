"""Statistics of two small samples: found networks and random ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance

import numpy as np

#: Up to this many ways to divide the sample, all of them are counted; of more, as many are sampled.
_PERMUTATIONS = 20_000


def student_cdf(t: float, freedom: int) -> float:
    """Return the probability that Student's t with integer degrees of freedom is at most t.

    The finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    if odd:
        inside = angle + (math.sin(angle) * total if freedom > 1 else 0.0)
        within = 2 / math.pi * inside
    else:
        within = math.sin(angle) * total
    return 0.5 + 0.5 * within


def student_quantile(probability: float, freedom: int) -> float:
    """Return the value that Student's t exceeds with probability 1 - `probability`, which is at least 0.5."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return high


def error_of_mean(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for fewer than two values."""
    return math.sqrt(variance(values) / len(values)) if len(values) > 1 else None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean; None for fewer than two values."""
    error = error_of_mean(values)
    if error is None:
        return None
    mean, half = fmean(values), student_quantile(0.975, len(values) - 1) * error
    return mean - half, mean + half


def standard_error(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the standard error of the difference of two means (Welch); None for fewer than two values."""
    if min(len(first), len(second)) < 2:
        return None
    return math.sqrt(variance(first) / len(first) + variance(second) / len(second))


def permutation_p(first: Sequence[float], second: Sequence[float], seed: int = 0) -> float:
    """Return the two-sided p of the difference of two means under all ways to divide the values into two samples.

    Exact for up to 20,000 ways. Of more, 20,000 are sampled with a fixed seed, and the observed one is counted too.
    """
    values = np.array([*first, *second])
    count, total = len(first), values.sum()
    # A sum determines both means. Sums that differ only by rounding are equal.
    expected, tolerance = count * total / len(values), 1e-9 * np.abs(values).sum()
    observed = abs(values[:count].sum() - expected) - tolerance
    if math.comb(len(values), count) <= _PERMUTATIONS:
        chosen = np.array(list(itertools.combinations(range(len(values)), count)))
        return float(np.mean(np.abs(values[chosen].sum(1) - expected) >= observed))
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((_PERMUTATIONS, len(values))), axis=1)[:, :count]
    extreme = int(np.sum(np.abs(values[order].sum(1) - expected) >= observed))
    return (extreme + 1) / (_PERMUTATIONS + 1)


def relative_improvement(found: Sequence[float], random: Sequence[float]) -> float | None:
    """Return 100 * (found - random) / random of the means, in percent (arXiv 1912.12522, eq. 1)."""
    baseline = fmean(random)
    return 100 * (fmean(found) - baseline) / baseline if baseline else None


def rank_among(value: float, others: Sequence[float]) -> int:
    """Return the rank of a value among others: 1 if none is greater."""
    return 1 + sum(other > value for other in others)


def runs_to_show(difference: float, first: Sequence[float], second: Sequence[float]) -> int | None:
    """Return how many runs of each kind would show a difference, at two-sided 5 % with a power of 80 %.

    The variances are those of the two samples; None for fewer than two values.
    """
    if min(len(first), len(second)) < 2:
        return None
    spread = (variance(first) + variance(second)) / difference**2
    # Normal quantiles give a lower bound: those of Student's t are a little larger.
    normal = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
    runs = max(2, math.ceil(normal**2 * spread))
    while True:
        freedom = 2 * runs - 2
        if (student_quantile(0.975, freedom) + student_quantile(0.8, freedom)) ** 2 * spread <= runs:
            return runs
        runs += 1
