"""Pictures of the `reid_cell` space: a cell, and a derived network as a row of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from autoreid.models import count_parameters
from autoreid.spaces.drawing import BOX, FRAME, PAGE, Arrow, Drawing, Group, Node, abbreviate, title

if TYPE_CHECKING:
    from autoreid.spaces.reid_cell.derived import DerivedNetwork

#: A cell's inputs and output, named as in the DARTS paper.
_INPUTS = ("<c<sub>k-2</sub>>", "<c<sub>k-1</sub>>")
_OUTPUT = "<c<sub>k</sub>>"


class _Look(NamedTuple):
    """How the operations of one family are drawn: the line's colour and width, the label's fill and ink."""

    colour: str
    fill: str
    ink: str
    width: str = "1.6"
    line: str = "solid"
    font: str = "Helvetica"


_CONVOLUTION = _Look("#1f5fa8", "#eaf2fc", "#174a85")
_POOL = _Look("#2e7d32", "#ebf6ec", "#1f6324")
_SKIP = _Look("#757575", "#f5f5f5", "#5f5f5f", line="dashed")
# What a search for people is after must be seen first.
_PART_AWARE = _Look("#d6006c", "#d6006c", "white", width="4", font="Helvetica-Bold")
#: The look of an operation by the first word of its name.
_LOOKS = {
    "sep": _CONVOLUTION,
    "dil": _CONVOLUTION,
    "max": _POOL,
    "avg": _POOL,
    "skip": _SKIP,
    "part": _PART_AWARE,
}

_CELL_PAGE = PAGE | {"ranksep": "0.17", "nodesep": "0.18"}
_CELL_NODE = BOX | {
    "fontcolor": "#263238",
    "fontname": "Helvetica-Bold",
    "fontsize": "15",
    "height": "0.45",
    "width": "0.45",
    "margin": "0.1,0.03",
}

_NETWORK_PAGE = PAGE | {"ranksep": "0.2", "nodesep": "0.2", "newrank": "true"}
_NETWORK_NODE = BOX | {
    "fontname": "Helvetica",
    "fontsize": "13",
    "margin": "0.12,0.06",
    "fillcolor": "#f5f5f5",
}
_FILL = {"normal": "#e3f2fd", "reduce": "#ffe0b2", "input": "white", "head": "#c8e6c9"}
#: What follows the last cell.
_ENDS = {"embedding": "average", "neck": "BNNeck"}
#: A cell's older input is drawn fainter, so that the row of cells is what is seen.
_OLDER = {"color": "#b0bec5", "style": "dashed", "arrowsize": "0.6"}


def cell_drawing(cell: Sequence[Sequence[tuple[str, int]]], kind: str, caption: str) -> Drawing:
    """One cell: both inputs, nodes 0 to N-1, the output (their concatenation).

    Each edge carries its operation in a box on the line: convolutions blue, pools green, skips grey and
    dashed, part_aware thick and magenta. Above stand the kind ("normal", "reduce") and the caption, for
    example "quickstart · epoch 3 · mAP 41.2 %".
    """
    inputs = [Node(f"input{source}", label, {"fillcolor": "#ffe0b2"}) for source, label in enumerate(_INPUTS)]
    # The unseen edge keeps the inputs in this order, so that pictures of successive epochs compare.
    order = Arrow("input0", "input1", {"style": "invis"})
    circle = {"fillcolor": "#e3f2fd", "shape": "circle", "margin": "0"}
    items: list[Node | Arrow | Group] = [
        Group([*inputs, order], {"rank": "same"}),
        *(Node(f"node{node}", str(node), circle) for node in range(len(cell))),
        Node("output", _OUTPUT, {"fillcolor": "#c8e6c9"}),
    ]
    for node, edges in enumerate(cell):
        for place, (operation, source) in enumerate(edges):
            tail = f"input{source}" if source < len(_INPUTS) else f"node{source - len(_INPUTS)}"
            items += _operation(tail, f"node{node}", f"edge{node}{'ab'[place]}", operation)
        items.append(Arrow(f"node{node}", "output", {"color": "#b0bec5", "penwidth": "1.2"}))
    name = f"{kind} cell"
    return Drawing(name, title(name, caption), items, _CELL_PAGE, _CELL_NODE, {"arrowsize": "0.8"})


def _operation(tail: str, head: str, name: str, operation: str) -> tuple[Node, Arrow, Arrow]:
    """An edge with its operation in a box on the line.

    Graphviz's own edge labels float beside the lines, where it is not clear to which of two they belong.
    """
    look = _LOOKS[operation.split("_")[0]]
    box = {"fillcolor": look.fill, "color": look.colour, "fontcolor": look.ink, "fontname": look.font}
    box |= {"fontsize": "13", "height": "0.26", "width": "0", "margin": "0.07,0.02"}
    line = {"color": look.colour, "penwidth": look.width, "style": look.line}
    return (
        Node(name, operation, box),
        Arrow(tail, name, {"arrowhead": "none"} | line),
        Arrow(name, head, line),
    )


def network_drawing(network: DerivedNetwork, shapes: Mapping[str, str], caption: str, size: str) -> Drawing:
    """A derived network; a frame around each stage says its parameters.

    Solid arrows lead to a cell from the last one, dashed ones from the one before.

    Args:
        shapes: C × H × W of what each module gives, by its name; of the images under "".
        size: of the whole network, behind the caption.
    """
    head = {"fillcolor": _FILL["head"]}
    items: list[Node | Arrow | Group] = [
        Node("images", f"images\n{shapes['']}", {"fillcolor": _FILL["input"]}),
        _frame("stem", [network.stem], [Node("stem", f"stem\n{shapes['stem']}")]),
    ]
    for stage, members in groupby(enumerate(network.plans), key=lambda member: member[1].stage):
        cells = [(index, plan.kind) for index, plan in members]
        nodes = [
            Node(f"cell{index}", f"{kind}\n{shapes[f'cells.{index}']}", {"fillcolor": _FILL[kind]})
            for index, kind in cells
        ]
        items.append(_frame(f"stage {stage + 1}", [network.cells[index] for index, _ in cells], nodes))
    ends = [Node(name, f"{text}\n{network.embedding_size}", head) for name, text in _ENDS.items()]
    items += [_frame("head", [network.neck], ends), *_arrows(network)]
    heading = title(caption, size)
    return Drawing("network", heading, items, _NETWORK_PAGE, _NETWORK_NODE, {"arrowsize": "0.8"})


def _frame(name: str, modules: Sequence[nn.Module], nodes: Sequence[Node]) -> Group:
    """A frame around nodes, with the parameters of what it holds."""
    parameters = abbreviate(sum(count_parameters(module) for module in modules))
    return Group(nodes, FRAME | {"label": f"{name} · {parameters}"}, f"cluster {name}")


def _arrows(network: DerivedNetwork) -> Iterator[Node | Arrow]:
    names = ["images", "stem", *(f"cell{index}" for index in range(len(network.cells))), *_ENDS]
    for last, name in pairwise(names):
        yield Arrow(last, name, {"weight": "20"})
    # The first cell takes the stem twice, the second one the stem and the first cell.
    for older, cell in zip(["stem", *names[1:-4]], names[2:-2], strict=True):
        yield Arrow(older, cell, _OLDER)
    if network.auxiliary is not None:
        parameters = abbreviate(count_parameters(network.auxiliary))
        text = f"auxiliary head\n{parameters}, training only"
        yield Node("auxiliary", text, {"style": "rounded,dashed"})
        yield Arrow(f"cell{network.auxiliary_after}", "auxiliary", {"style": "dashed"})
