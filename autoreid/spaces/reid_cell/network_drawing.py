"""The picture of a derived network of the `reid_cell` space: a row of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from torch import nn

from autoreid.models import count_parameters
from autoreid.spaces.drawing import (
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

_FILLS = {"normal": INNER, "reduce": INPUT}
#: What follows the last cell of a network.
_ENDS = ("embedding", "neck")
#: Arrows from a cell to the next but one, drawn faintly so that the sequence of cells stands out.
_SKIPPING = {"color": "#b0bec5", "style": "dashed", "arrowsize": "0.6"}


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
