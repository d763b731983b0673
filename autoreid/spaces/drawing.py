"""Pictures of genotypes and networks as plain nodes and arrows.

Spaces describe what is to be seen, and `autoreid.reporting` draws it. Attributes and labels are those of Graphviz's DOT
language: a label between `<` and `>` is markup.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: Attributes of every picture, of boxes in it, and of frames around them.
PAGE = {"rankdir": "LR", "bgcolor": "white", "dpi": "100", "pad": "0.15"}
PAGE |= {"labelloc": "t", "fontname": "Helvetica", "fontsize": "16"}
BOX = {"shape": "box", "style": "rounded,filled", "color": "#263238"}
FRAME = {"style": "rounded,filled", "color": "#b0bec5", "fillcolor": "#fafafa", "fontsize": "13"}
FRAME |= {"fontname": "Helvetica", "margin": "10"}


class Node(NamedTuple):
    """A box or circle, with the attributes in which it differs from the others."""

    name: str
    label: str
    attributes: Mapping[str, str] = {}


class Arrow(NamedTuple):
    """An arrow from one node to another, with the attributes in which it differs from the others."""

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
    """A picture, left to right.

    Attributes:
        title: markup that stands above it.
        items: what it consists of, in the order in which it is laid out.
        page, nodes, arrows: attributes of the picture, of all nodes and of all arrows.
    """

    name: str
    title: str
    items: Sequence[Node | Arrow | Group]
    page: Mapping[str, str]
    nodes: Mapping[str, str]
    arrows: Mapping[str, str] = field(default_factory=dict)


def title(head: str, note: str) -> str:
    """The markup of a title: the head in bold, and a note in grey behind it; both are plain text."""
    # The spaces stand inside the font element, which Graphviz does not allow to be empty.
    return f'<b>{html.escape(head)}</b><font color="#546e7a">   {html.escape(note)}</font>'


def abbreviate(number: int) -> str:
    """Three figures, as papers give sizes: 638 k, 9.12 M."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return str(number)
