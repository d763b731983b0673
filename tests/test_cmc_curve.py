from __future__ import annotations

import numpy as np
import pytest

from autoreid.reporting import cmc_curve
from autoreid.reporting.cmc_curve import COLOURS, draw_cmc_curve


def rgb(colour):
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def curve_heights(picture, colour, ranks):
    """The share that is drawn above each rank, from the colour's pixels in that column of the plot."""
    width, height = cmc_curve.PLOT
    plot = np.asarray(picture)[cmc_curve.TOP - 3 : cmc_curve.TOP + height + 3]
    found = []
    for rank in ranks:
        x = round(cmc_curve.LEFT + width * (rank - 1) / 19)
        rows = np.flatnonzero((plot[:, x] == rgb(colour)).all(1))
        found.append(1 - (rows.mean() - 3) / height)
    return found


def test_each_curve_goes_through_its_values():
    ranks = range(1, 21)
    low = {rank: 0.05 + 0.04 * rank for rank in ranks}
    high = {rank: 1 - 0.5 / rank**2 for rank in ranks}
    low[1] = 0.0  # so that the axis starts at 0
    picture = draw_cmc_curve({"low": low, "high": high})
    for colour, cmc in zip(COLOURS, (low, high), strict=False):
        inner = range(2, 20)
        expected = [cmc[rank] for rank in inner]
        assert curve_heights(picture, colour, inner) == pytest.approx(expected, abs=0.015)


def test_the_axis_of_good_networks_starts_below_their_lowest_value():
    cmc = {rank: 0.93 + 0.003 * rank for rank in range(1, 21)}
    inner = range(2, 20)
    drawn = curve_heights(draw_cmc_curve({"good": cmc}), COLOURS[0], inner)
    assert [0.9 + 0.1 * height for height in drawn] == pytest.approx([cmc[rank] for rank in inner], abs=0.002)


def test_more_curves_than_colours_and_a_single_rank_are_drawn():
    many = {f"network {number}": {1: 1.0} for number in range(len(COLOURS) + 1)}
    few = {"network": {1: 1.0}}
    lines = draw_cmc_curve(many).height - draw_cmc_curve(few).height
    assert lines == cmc_curve.LINE * len(COLOURS)
