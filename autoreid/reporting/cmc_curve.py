"""Plot CMC curves with matplotlib, which is an optional dependency."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cmc_figure(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Return a figure with one curve for each label, and a legend below.

    Args:
        curves: by label, the share (0 to 1) of queries with a match among the first k gallery images, by rank k.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Each line of the legend needs 0.22 inches.
    figure = Figure(figsize=(6.4, 4.4 + 0.22 * len(curves)), layout="constrained")
    axes = figure.add_subplot(xlabel="rank", ylabel="queries with a match in %")
    for label, cmc in curves.items():
        axes.plot(list(cmc), [100 * share for share in cmc.values()], marker="o", markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    return figure


def draw_cmc_curves(curves: Mapping[str, Mapping[int, float]]) -> Image.Image:
    """Return the figure of `cmc_figure` as a picture."""
    data = io.BytesIO()
    cmc_figure(curves).savefig(data, format="png")
    return Image.open(data).convert("RGB")
