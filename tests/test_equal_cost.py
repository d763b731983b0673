"""Searches against random sampling at equal cost."""

from itertools import combinations
from statistics import fmean

import pytest

from autoreid.trials.equal_cost import at_equal_cost, cost_curve, expected_best

VALUES = [48.0, 52.2, 47.1, 50.3, 44.9, 50.3]


@pytest.mark.parametrize("count", range(1, 7))
def test_the_expected_best_is_the_mean_over_all_subsets(count):
    expected = fmean(max(subset) for subset in combinations(VALUES, count))
    assert expected_best(VALUES, count) == pytest.approx(expected)


def test_a_curve_has_a_point_for_each_number_of_networks():
    curve = cost_curve(VALUES, [10.0, 20.0, 10.0, 20.0, 10.0, 20.0])
    assert [cost for cost, _ in curve] == pytest.approx([15, 30, 45, 60, 75, 90])
    assert curve[0][1] == pytest.approx(fmean(VALUES))
    assert curve[-1][1] == 52.2


@pytest.mark.parametrize(
    ("each_found", "num_found", "each_random", "num_random", "expected"),
    [(60, 3, 15, 12, (3, 12)), (60, 3, 15, 9, (2, 8)), (60, 3, 70, 2, (2, 2)), (60, 3, 15, 2, None)],
)
def test_equal_cost_uses_as_many_networks_as_both_have(
    each_found, num_found, each_random, num_random, expected
):
    found = [(each_found * n, 50.0 + n) for n in range(1, num_found + 1)]
    random = [(each_random * n, 49.0 + n) for n in range(1, num_random + 1)]
    assert at_equal_cost(found, random) == expected
