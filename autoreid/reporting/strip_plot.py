"""Samples side by side: every value as a point, the mean as a line, and its confidence interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

#: Okabe and Ito's colours, which people with colour blindness can tell apart.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")
_INK, _GRID = "#263238", "#dde3e6"
#: Pixels of the plot, of a column, and around them. Everything is drawn this much larger first, which smooths it.
_HEIGHT, _COLUMN, _LEFT, _TOP, _BOTTOM, _RIGHT = 320, 190, 72, 30, 84, 24
_OVERSIZE = 3
_STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


class Sample(NamedTuple):
    """The values of a column.

    Attributes:
        interval: the confidence interval of the mean; None draws none.
    """

    values: Sequence[float]
    interval: tuple[float, float] | None


def draw_samples(samples: Mapping[str, Sample], label: str, caption: str) -> Image.Image:
    """Return a picture of samples, one column for each.

    Args:
        samples: by name; at least one value each.
        label: of the vertical axis.
        caption: a line below the plot.
    """
    size = (_LEFT + _COLUMN * len(samples) + _RIGHT, _TOP + _HEIGHT + _BOTTOM)
    width = max(size[0], _LEFT + _RIGHT + round(_text_width(caption)))
    canvas = _Canvas(width, size[1], list(samples.values()))
    canvas.axes(size[0] - _RIGHT, label)
    for place, ((name, sample), colour) in enumerate(
        zip(samples.items(), itertools.cycle(_COLOURS), strict=False)
    ):
        canvas.column(_LEFT + (place + 0.5) * _COLUMN, f"{name} ({len(sample.values)})", sample, colour)
    canvas.text((_LEFT, _TOP + _HEIGHT + 42), caption, "la")
    return canvas.image.resize((width, size[1]), Image.Resampling.BOX)


def _font(scale: int = 1) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13 * scale)


def _text_width(text: str) -> float:
    return max(_font().getlength(line) for line in text.split("\n"))


class _Canvas:
    """The oversized picture; positions are given in pixels of the final one."""

    def __init__(self, width: int, height: int, samples: Sequence[Sample]) -> None:
        self.image = Image.new("RGB", (width * _OVERSIZE, height * _OVERSIZE), "white")
        self.draw = ImageDraw.Draw(self.image)
        ends = [value for sample in samples for value in (*sample.values, *(sample.interval or ()))]
        spread = max(ends) - min(ends)
        self.step = next((step for step in _STEPS if spread / step <= 8), 100.0)
        self.low = math.floor(min(ends) / self.step) * self.step
        self.high = max(math.ceil(max(ends) / self.step) * self.step, self.low + self.step)

    def y(self, value: float) -> float:
        return _TOP + _HEIGHT * (self.high - value) / (self.high - self.low)

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: str, width: float) -> None:
        scaled = [(x * _OVERSIZE, y * _OVERSIZE) for x, y in (start, end)]
        self.draw.line(scaled, colour, round(width * _OVERSIZE))

    def text(self, point: tuple[float, float], text: str, anchor: str) -> None:
        place = (point[0] * _OVERSIZE, point[1] * _OVERSIZE)
        # Several lines cannot have every anchor.
        for number, line in enumerate(text.split("\n")):
            self.draw.text(
                (place[0], place[1] + 18 * _OVERSIZE * number), line, _INK, _font(_OVERSIZE), anchor
            )

    def axes(self, right: float, label: str) -> None:
        """Draw the grid, the axes and their numbers."""
        for number in range(round((self.high - self.low) / self.step) + 1):
            value = self.low + number * self.step
            self.line((_LEFT, self.y(value)), (right, self.y(value)), _GRID, 1)
            self.text((_LEFT - 8, self.y(value)), f"{value:g}", "rm")
        self.line((_LEFT, _TOP), (_LEFT, _TOP + _HEIGHT), _INK, 1.5)
        self.line((_LEFT, _TOP + _HEIGHT), (right, _TOP + _HEIGHT), _INK, 1.5)
        self.text((_LEFT, _TOP - 10), label, "rs")

    def column(self, x: float, name: str, sample: Sample, colour: str) -> None:
        """Draw the points of a sample on the left of x, mean and interval on the right."""
        for place, value in enumerate(sample.values):
            self.dot(x - 24 + 9 * (place % 3 - 1), self.y(value), 4, colour)
        if sample.interval is not None:
            low, high = map(self.y, sample.interval)
            self.line((x + 28, low), (x + 28, high), _INK, 1.5)
            for end in (low, high):
                self.line((x + 22, end), (x + 34, end), _INK, 1.5)
        mean = fmean(sample.values)
        self.line((x + 12, self.y(mean)), (x + 44, self.y(mean)), colour, 3)
        self.text((x + 48, self.y(mean)), f"{mean:.1f}", "lm")
        self.text((x, _TOP + _HEIGHT + 10), name, "ma")

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        box = [
            (x - radius) * _OVERSIZE,
            (y - radius) * _OVERSIZE,
            (x + radius) * _OVERSIZE,
            (y + radius) * _OVERSIZE,
        ]
        self.draw.ellipse(box, fill=colour, outline="white", width=_OVERSIZE)
