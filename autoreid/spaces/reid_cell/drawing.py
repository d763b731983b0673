"""Pictures of the `reid_cell` space: a cell, and a derived network as a row of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from autoreid.models import count_parameters
from autoreid.spaces.drawing import (
    ACCENT,
    BOX,
    FRAME,
    INNER,
    INPUT,
    OUTPUT,
    Arrow,
    Drawing,
    Group,
    Node,
    abbreviate,
    title,
)

if TYPE_CHECKING:
    from autoreid.spaces.reid_cell.derived import DerivedNetwork

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

_FILLS = {"normal": INNER, "reduce": INPUT}
#: What follows the last cell of a network.
_ENDS = ("embedding", "neck")
#: Arrows from a cell to the next but one, drawn faintly so that the sequence of cells stands out.
_SKIPPING = {"color": "#b0bec5", "style": "dashed", "arrowsize": "0.6"}


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


def network_drawing(network: DerivedNetwork, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
    """Return the drawing of a derived network, with a frame around each stage that has its number of parameters.

    The solid arrow into a cell comes from the previous cell, the dashed arrow from the one before that.

    Args:
        shapes: output shape C × H × W of each module, by its name; the shape of the images under "".
        size: size of the whole network, which follows the caption.
    """
    items: list[Node | Arrow | Group] = [
        Node("images", f"images\n{shapes['']}", {"fillcolor": "white"}),
        _frame("stem", [network.stem], [Node("stem", f"stem\n{shapes['stem']}")]),
    ]
    for stage, members in groupby(enumerate(network.plans), key=lambda member: member[1].stage):
        cells = [(index, plan.kind) for index, plan in members]
        nodes = [
            Node(f"cell{index}", f"{kind}\n{shapes[f'cells.{index}']}", _FILLS[kind]) for index, kind in cells
        ]
        items.append(_frame(f"stage {stage + 1}", [network.cells[index] for index, _ in cells], nodes))
    texts = zip(_ENDS, (network.pool.label, "BNNeck"), strict=True)
    ends = [Node(name, f"{text}\n{network.embedding_size}", OUTPUT) for name, text in texts]
    items += [_frame("head", [network.neck], ends), *_arrows(network)]
    heading = title(caption, size)
    return Drawing("network", heading, items, BOX)


def _frame(name: str, modules: Sequence[nn.Module], nodes: Sequence[Node]) -> Group:
    """Return a frame around nodes, with the number of parameters of their modules."""
    parameters = abbreviate(sum(count_parameters(module) for module in modules))
    return Group(nodes, FRAME | {"label": f"{name} · {parameters}"}, f"cluster {name}")


def _arrows(network: DerivedNetwork) -> Iterator[Node | Arrow]:
    names = ["images", "stem", *(f"cell{index}" for index in range(len(network.cells))), *_ENDS]
    for previous, name in pairwise(names):
        yield Arrow(previous, name, {"weight": "20"})
    # Both inputs of the first cell are the stem; those of the second are the stem and the first cell.
    for older, cell in zip(["stem", *names[1:-4]], names[2:-2], strict=True):
        yield Arrow(older, cell, _SKIPPING)
    if network.auxiliary is not None:
        parameters = abbreviate(count_parameters(network.auxiliary))
        text = f"auxiliary head\n{parameters}, training only"
        yield Node("auxiliary", text, {"style": "rounded,dashed"})
        yield Arrow(f"cell{network.auxiliary_after}", "auxiliary", {"style": "dashed"})
