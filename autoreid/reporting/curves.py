"""Plot curves with matplotlib, which is an optional dependency."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

#: Curves with up to this many points have markers.
_MARKED = 50
#: The coordinates of a curve: x and y.
Curve = tuple[Sequence[float], Sequence[float]]


def figure_of(curves: Mapping[str, Curve], xlabel: str, ylabel: str, log_x: bool = False) -> Figure:
    """Return a figure with a curve for each label, and a legend below. If all x are integers, so are the ticks.

    The points of curves with many of them are not marked. With `log_x`, the axis of x is logarithmic.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Each line of the legend needs 0.22 inches.
    figure = Figure(figsize=(6.4, 4.4 + 0.22 * len(curves)), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    for label, (x, y) in curves.items():
        axes.plot(x, y, marker="o" if len(x) <= _MARKED else "", markersize=4, label=label)
    if all(isinstance(value, int) for x, _ in curves.values() for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log_x:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    return figure


def cmc_figure(curves: Mapping[str, Mapping[int, float]]) -> Figure:
    """Return a figure of CMC curves.

    Args:
        curves: by label, the share (0 to 1) of queries with a match among the first k gallery images, by rank k.

    Raises:
        ImportError: matplotlib is not installed.
    """
    percent = {label: (list(cmc), [100 * share for share in cmc.values()]) for label, cmc in curves.items()}
    return figure_of(percent, "rank", "queries with a match in %")


def picture_of(figure: Figure) -> Image.Image:
    """Return a figure as a picture."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return Image.open(data).convert("RGB")


def curves_png(curves: Mapping[str, Curve], xlabel: str, ylabel: str, name: str) -> bytes | None:
    """Return the curves as a PNG file; None without curves, or with a warning if matplotlib is not installed.

    Args:
        name: of the file, for the warning.
    """
    if not curves:
        return None
    try:
        figure = figure_of(curves, xlabel, ylabel)
    except ImportError:
        _log.warning("%s was not drawn, because matplotlib is not installed: pip install matplotlib", name)
        return None
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
