"""Pictures of genotypes and networks as plain nodes and arrows.

Spaces describe the pictures, and `autoreid.reporting` draws them. Attributes and labels are those of Graphviz's DOT
language: a label between `<` and `>` is an HTML-like label.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Attributes of every picture, of its boxes and arrows, and of the frames around groups.
PAGE = {
    "rankdir": "LR",
    "ranksep": "0.2",
    "nodesep": "0.2",
    "newrank": "true",
    "bgcolor": "white",
    "dpi": "100",
}
PAGE |= {"pad": "0.15", "labelloc": "t", "fontname": "Helvetica", "fontsize": "16"}
BOX = {"shape": "box", "style": "rounded,filled", "color": "#263238", "fillcolor": "#f5f5f5"}
BOX |= {"fontname": "Helvetica", "fontsize": "13", "margin": "0.12,0.06"}
ARROW = {"arrowsize": "0.8"}
FRAME = {"style": "rounded,filled", "color": "#b0bec5", "fillcolor": "#fafafa", "fontsize": "13"}
FRAME |= {"fontname": "Helvetica", "margin": "10"}

#: Fills of the boxes of inputs, inner nodes and outputs.
INPUT, INNER, OUTPUT = {"fillcolor": "#ffe0b2"}, {"fillcolor": "#e3f2fd"}, {"fillcolor": "#c8e6c9"}
#: Colour of what the search is about, which must catch the eye.
ACCENT = "#d6006c"


class Node(NamedTuple):
    """A box or circle, with the attributes in which it differs from the drawing's other nodes."""

    name: str
    label: str
    attributes: Mapping[str, str] = {}


class Arrow(NamedTuple):
    """An arrow from one node to another, with the attributes in which it differs from the other arrows."""

    tail: str
    head: str
    attributes: Mapping[str, str] = {}


class Group(NamedTuple):
    """Nodes and arrows that belong together.

    Attributes:
        name: a name that begins with "cluster" puts a frame around the group.
    """

    items: Sequence[Node | Arrow]
    attributes: Mapping[str, str]
    name: str | None = None


@dataclass(frozen=True)
class Drawing:
    """A picture, laid out from left to right.

    Attributes:
        title: HTML-like label above the picture; see `title`.
        items: nodes, arrows and groups, in the order of the layout.
        nodes: attributes of all nodes.
    """

    name: str
    title: str
    items: Sequence[Node | Arrow | Group]
    nodes: Mapping[str, str]


def title(head: str, note: str) -> str:
    """Return the label of a title: the head in bold, followed by a note in grey. Both are plain text."""
    # The spaces are inside the font element because Graphviz does not allow it to be empty.
    return f'<b>{html.escape(head)}</b><font color="#546e7a">   {html.escape(note)}</font>'


def abbreviate(number: int) -> str:
    """Return a number with three significant digits and a unit, such as 638 k or 9.12 M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return str(number)
