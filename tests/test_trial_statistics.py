"""The statistics of a study, against tables, enumeration and simulation."""

import itertools
import math
from statistics import fmean, stdev, variance

import numpy as np
import pytest

from autoreid.trials.statistics import (
    mean_interval,
    permutation_p,
    rank_among,
    relative_improvement,
    runs_to_show,
    standard_error,
    student_cdf,
    student_quantile,
)

FOUND = [53.1, 49.8, 61.0, 55.5]
RANDOM = [48.0, 52.2, 47.1, 50.3, 44.9]


@pytest.mark.parametrize(
    ("freedom", "probability", "quantile"),
    # From printed tables.
    [(1, 0.975, 12.706), (2, 0.975, 4.303), (3, 0.975, 3.182), (7, 0.975, 2.365), (10, 0.95, 1.812)]
    + [(5, 0.8, 0.920), (30, 0.975, 2.042), (120, 0.975, 1.980)],
)
def test_students_quantiles_are_those_of_tables(freedom, probability, quantile):
    assert student_quantile(probability, freedom) == pytest.approx(quantile, abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 11])
def test_students_distribution_is_the_integral_of_its_density(freedom):
    points = np.linspace(0, 1.7, 20_001)
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    density = scale * (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
    area = float(((density[1:] + density[:-1]) / 2).sum() * (points[1] - points[0]))
    assert student_cdf(1.7, freedom) == pytest.approx(0.5 + area, abs=1e-8)
    assert student_cdf(-1.7, freedom) == pytest.approx(0.5 - area, abs=1e-8)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(list(rng.normal(3, 2, size=4))) for _ in range(4000)]
    covered = fmean(low <= 3 <= high for low, high in intervals)
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))
    assert mean_interval([1.0]) is None


def test_the_standard_error_is_the_deviation_of_simulated_differences():
    rng = np.random.default_rng(1)
    drawn = [(rng.normal(0, 3, size=6), rng.normal(0, 1, size=9)) for _ in range(4000)]
    deviation = stdev(float(first.mean() - second.mean()) for first, second in drawn)
    assert math.sqrt(fmean(standard_error(*pair) ** 2 for pair in drawn)) == pytest.approx(
        deviation, rel=0.05
    )
    assert standard_error([1.0], [1.0, 2.0]) is None


def test_few_values_are_permuted_exactly():
    observed = abs(fmean(FOUND) - fmean(RANDOM))
    values, extreme, ways = FOUND + RANDOM, 0, 0
    for order in itertools.permutations(range(9)):
        first, second = [values[i] for i in order[:4]], [values[i] for i in order[4:]]
        extreme += abs(fmean(first) - fmean(second)) >= observed - 1e-9
        ways += 1
    assert permutation_p(FOUND, RANDOM) == pytest.approx(extreme / ways)
    assert permutation_p(RANDOM, FOUND) == pytest.approx(extreme / ways)
    assert permutation_p([1.0, 1.0], [1.0, 1.0]) == 1.0


def test_many_values_are_permuted_by_chance_the_same_each_time():
    rng = np.random.default_rng(2)
    first, second = rng.normal(0.6, 1, size=20), rng.normal(0, 1, size=20)
    p = permutation_p(list(first), list(second))
    assert p == permutation_p(list(first), list(second))
    # An independent sample of another kind: swap values one by one.
    values, observed = np.concatenate([first, second]), abs(first.mean() - second.mean())
    shuffled = [rng.permutation(values) for _ in range(20_000)]
    other = fmean(abs(one[:20].mean() - one[20:].mean()) >= observed for one in shuffled)
    assert p == pytest.approx(other, abs=5 * math.sqrt(2 * other / 20_000))
    assert 0 < permutation_p([100.0] * 20, [0.0] * 20) < 1e-4, "never 0"


def test_relative_improvement_and_rank():
    assert relative_improvement([55.0, 57.0], [50.0, 54.0]) == pytest.approx(100 * 4 / 52)
    assert [rank_among(value, [3.0, 5.0, 5.0]) for value in (6.0, 5.0, 4.0, 2.0)] == [1, 1, 3, 4]


def test_as_many_runs_as_it_says_show_the_difference_with_the_power_it_says():
    rng = np.random.default_rng(3)
    first, second = list(rng.normal(0, 2, size=8)), list(rng.normal(0, 3, size=8))
    difference = 3.0
    runs = runs_to_show(difference, first, second)
    deviations = math.sqrt(variance(first)), math.sqrt(variance(second))

    def power(runs: int) -> float:
        found = rng.normal(difference, deviations[0], size=(8000, runs))
        random = rng.normal(0, deviations[1], size=(8000, runs))
        error = np.sqrt((found.var(1, ddof=1) + random.var(1, ddof=1)) / runs)
        t = (found.mean(1) - random.mean(1)) / error
        return float((np.abs(t) > student_quantile(0.975, 2 * runs - 2)).mean())

    assert power(runs) == pytest.approx(0.8, abs=0.03)
    assert runs > 4, "the case says nothing"
    assert power(runs - 3) < 0.78
    assert runs_to_show(difference, [1.0], second) is None
