"""The picture of a cell of the `reid_cell` space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from autoreid.spaces.drawing import (
    ACCENT,
    BOX,
    INNER,
    INPUT,
    OUTPUT,
    Arrow,
    Drawing,
    Group,
    Node,
    title,
)

#: The inputs and the output of a cell, named as in the DARTS paper.
_INPUTS = ("<c<sub>k-2</sub>>", "<c<sub>k-1</sub>>")
_OUTPUT = "<c<sub>k</sub>>"


class _Look(NamedTuple):
    """How the operations of one family are drawn: colour, width and style of the line; fill and text of the label."""

    colour: str
    fill: str
    ink: str
    width: str = "1.6"
    line: str = "solid"
    font: str = "Helvetica"


_CONVOLUTION = _Look("#1f5fa8", "#eaf2fc", "#174a85")
_POOL = _Look("#2e7d32", "#ebf6ec", "#1f6324")
_SKIP = _Look("#757575", "#f5f5f5", "#5f5f5f", line="dashed")
_PART_AWARE = _Look(ACCENT, ACCENT, "white", width="4", font="Helvetica-Bold")
_OTHER = _Look("#6d4c41", "#f5efec", "#4e342e")
#: The look of an operation by the first word of its name; other operations are drawn as `_OTHER`.
_LOOKS = {
    "sep": _CONVOLUTION,
    "dil": _CONVOLUTION,
    "max": _POOL,
    "avg": _POOL,
    "skip": _SKIP,
    "part": _PART_AWARE,
}

#: Nodes of a cell, which are smaller than the boxes of a network.
_CELL_NODE = BOX | {"fontname": "Helvetica-Bold", "fontsize": "15", "fontcolor": "#263238"}
_CELL_NODE |= {"height": "0.45", "width": "0.45", "margin": "0.1,0.03"}


def cell_drawing(cell: Sequence[Sequence[tuple[str, int]]], kind: str, caption: str) -> Drawing:
    """Return the drawing of a cell: both inputs, the nodes 0 to N-1, and the output (their concatenation).

    Each edge has its operation in a box on the line: convolutions are blue, pools green, skips grey and dashed,
    part-aware operations thick and magenta, and other operations brown.

    Args:
        cell: for each node its edges, each with the operation and the index of the source.
        kind: "normal" or "reduce".
        caption: for example "quickstart · epoch 3 · mAP 41.2 %".
    """
    inputs = [Node(f"input{source}", label, INPUT) for source, label in enumerate(_INPUTS)]
    # This invisible edge keeps the order of the inputs, so that pictures of different epochs can be compared.
    order = Arrow("input0", "input1", {"style": "invis"})
    circle = INNER | {"shape": "circle", "margin": "0"}
    items: list[Node | Arrow | Group] = [
        Group([*inputs, order], {"rank": "same"}),
        *(Node(f"node{node}", str(node), circle) for node in range(len(cell))),
        Node("output", _OUTPUT, OUTPUT),
    ]
    for node, edges in enumerate(cell):
        for place, (operation, source) in enumerate(edges):
            tail = f"input{source}" if source < len(_INPUTS) else f"node{source - len(_INPUTS)}"
            items += _operation(tail, f"node{node}", f"edge{node}{'ab'[place]}", operation)
        items.append(Arrow(f"node{node}", "output", {"color": "#b0bec5", "penwidth": "1.2"}))
    name = f"{kind} cell"
    return Drawing(name, title(name, caption), items, _CELL_NODE)


def _operation(tail: str, head: str, name: str, operation: str) -> tuple[Node, Arrow, Arrow]:
    """Return an edge with its operation in a box on the line.

    Graphviz places edge labels next to the lines, where it is not clear to which of two lines they belong.
    """
    look = _LOOKS.get(operation.split("_")[0], _OTHER)
    box = {"fillcolor": look.fill, "color": look.colour, "fontcolor": look.ink, "fontname": look.font}
    box |= {"fontsize": "13", "height": "0.26", "width": "0", "margin": "0.07,0.02"}
    line = {"color": look.colour, "penwidth": look.width, "style": look.line}
    return (
        Node(name, operation, box),
        Arrow(tail, name, {"arrowhead": "none"} | line),
        Arrow(name, head, line),
    )
