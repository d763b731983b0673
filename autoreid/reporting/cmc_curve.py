"""CMC curves as a picture: the share of queries with a match among the first k images, over k."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

#: Okabe and Ito's colours, which colour-blind people tell apart too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK, GRID = "#263238", "#dde3e6"
#: Pixels; drawn this much larger first, which smooths the lines.
PLOT, LEFT, TOP, BOTTOM, RIGHT, LINE = (560, 320), 64, 24, 48, 24, 22
_OVERSIZE = 3

Point = tuple[float, float]


def draw_cmc_curve(curves: Mapping[str, Mapping[int, float]]) -> Image.Image:
    """One line for each label, through its CMC (rank k -> share from 0 to 1), and a legend below.

    The vertical axis starts at the full 10 % below the lowest value, so that good networks can be told apart.
    """
    ranks = sorted({rank for cmc in curves.values() for rank in cmc})
    lowest = min(value for cmc in curves.values() for value in cmc.values())
    floor = min(0.9, int(10 * lowest + 1e-9) / 10)
    size = (LEFT + PLOT[0] + RIGHT, TOP + PLOT[1] + BOTTOM + LINE * len(curves) + 8)
    large = Image.new("RGB", (size[0] * _OVERSIZE, size[1] * _OVERSIZE), "white")
    canvas = _Canvas(large, ranks[0], ranks[-1], floor)
    canvas.axes()
    for line, ((label, cmc), colour) in enumerate(
        zip(curves.items(), itertools.cycle(COLOURS), strict=False)
    ):
        canvas.curve(cmc, colour)
        canvas.legend(label, colour, line)
    return large.resize(size, Image.Resampling.BOX)


class _Canvas:
    """The plot on the oversized picture; positions are given in pixels of the final one."""

    def __init__(self, image: Image.Image, first: int, last: int, floor: float) -> None:
        self.draw = ImageDraw.Draw(image)
        self.first, self.last, self.floor = first, last, floor

    def at(self, rank: float, share: float) -> Point:
        """Where a value of the curves lies."""
        x = (rank - self.first) / max(1, self.last - self.first)
        y = (share - self.floor) / (1 - self.floor)
        return LEFT + x * PLOT[0], TOP + (1 - y) * PLOT[1]

    def line(self, points: list[Point], colour: str, width: float) -> None:
        scaled = [(x * _OVERSIZE, y * _OVERSIZE) for x, y in points]
        self.draw.line(scaled, colour, round(width * _OVERSIZE), joint="curve")

    def text(self, point: Point, text: str, anchor: str) -> None:
        font = ImageFont.load_default(13 * _OVERSIZE)
        self.draw.text((point[0] * _OVERSIZE, point[1] * _OVERSIZE), text, INK, font, anchor)

    def axes(self) -> None:
        """Grid, axes and their numbers."""
        step = 0.1 if self.floor < 0.8 else 0.02
        for number in range(round((1 - self.floor) / step) + 1):
            share = self.floor + number * step
            start = self.at(self.first, share)
            self.line([start, self.at(self.last, share)], GRID, 1)
            self.text((start[0] - 8, start[1]), f"{100 * share:.0f} %", "rm")
        for rank in sorted({self.first, *range(5, self.last + 1, 5), self.last}):
            start = self.at(rank, self.floor)
            self.line([start, self.at(rank, 1)], GRID, 1)
            self.text((start[0], start[1] + 8), str(rank), "ma")
        corner = self.at(self.first, self.floor)
        self.line([self.at(self.first, 1), corner, self.at(self.last, self.floor)], INK, 1.5)
        self.text((LEFT + PLOT[0] / 2, corner[1] + 26), "rank", "ma")

    def curve(self, cmc: Mapping[int, float], colour: str) -> None:
        points = [self.at(rank, share) for rank, share in sorted(cmc.items())]
        self.line(points, colour, 2)
        for x, y in points:
            box = [(x - 3) * _OVERSIZE, (y - 3) * _OVERSIZE, (x + 3) * _OVERSIZE, (y + 3) * _OVERSIZE]
            self.draw.ellipse(box, fill=colour)

    def legend(self, label: str, colour: str, line: int) -> None:
        y = TOP + PLOT[1] + BOTTOM + LINE * (line + 0.5)
        self.line([(LEFT, y), (LEFT + 28, y)], colour, 3)
        self.text((LEFT + 38, y), label, "lm")
