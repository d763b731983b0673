"""The pictures of curves."""

from __future__ import annotations

import numpy as np
import pytest

from autoreid.reporting.curves import cmc_figure, figure_of, picture_of

to_rgb = pytest.importorskip("matplotlib.colors", reason="needs matplotlib").to_rgb

CURVES = {
    "low": {rank: 0.05 + 0.04 * rank for rank in range(1, 21)},
    "high": {rank: 1 - 0.5 / rank**2 for rank in range(1, 21)},
}


def test_each_curve_is_drawn_through_its_values_in_percent():
    (axes,) = cmc_figure(CURVES).axes
    for line, (label, cmc) in zip(axes.lines, CURVES.items(), strict=True):
        assert line.get_label() == label
        assert list(line.get_xdata()) == list(range(1, 21))
        assert list(line.get_ydata()) == pytest.approx([100 * share for share in cmc.values()])
    assert axes.get_ylabel().endswith("%")


def test_the_legend_has_all_labels_and_lies_below_the_axes():
    figure = cmc_figure({f"network {number} on people: mAP 50.0 %": {1: 1.0} for number in range(12)})
    figure.draw_without_rendering()
    (legend,), (axes,) = figure.legends, figure.axes
    assert len(legend.get_texts()) == 12
    assert legend.get_window_extent().y1 <= axes.get_window_extent().y0
    assert axes.get_window_extent().height > 250


def test_the_picture_shows_a_line_of_the_colour_of_each_curve():
    (axes,) = cmc_figure(CURVES).axes
    pixels = np.asarray(picture_of(cmc_figure(CURVES))).reshape(-1, 3)
    for line in axes.lines:
        colour = np.round(255 * np.array(to_rgb(line.get_color())))
        assert (pixels == colour).all(1).sum() > 300


def test_any_curve_is_drawn_through_its_points():
    curves = {"found": ([60.0, 120.0], [50.0, 52.5]), "random": ([15.0, 30.0, 45.0], [44.0, 47.0, 49.0])}
    (axes,) = figure_of(curves, "seconds", "mAP in %").axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert drawn == curves
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seconds", "mAP in %")
