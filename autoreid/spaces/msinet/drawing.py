"""The picture of the `msinet` space: MSINet's cells, each with its two branches side by side and their interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from autoreid.spaces.drawing import ACCENT, BOX, FRAME, INPUT, OUTPUT, Arrow, Drawing, Group, Node, title

_INK, _LINE = "#455a64", "#b0bec5"
#: Fill and colour of each interaction's text, and the text. Strong colours: a branch learns from the other one.
_LOOKS = {
    "none": ("#eceff1", _INK, "none"),
    "ag": ("#bbdefb", "#0d3c66", "ag: one gate"),
    "cross_att": ("#6a1b9a", "white", "cross_att: a × b"),
    "exc": (ACCENT, "white", "exc: a ⇄ b"),
}
_BETWEEN_BRANCHES = {"exc", "cross_att"}


def cells_drawing(
    cells: Sequence[tuple[str, str]],
    caption: str,
    shapes: Mapping[str, str] | None = None,
    pooling: str = "average",
) -> Drawing:
    """Return the drawing of a whole MSINet, with the layers of its six cells from top to bottom.

    Each cell has two columns, one for each branch; an interaction stretches over both. The title has the number of
    interactions in which the branches learn from each other, and the caption.

    Args:
        cells: both interactions of each cell.
        caption: for example "quickstart · epoch 3 · mAP 41.2 %".
        shapes: output shape C × H × W of each module, by its name; None to omit them.
        pooling: how the last map is pooled.
    """
    notes = shapes or {}
    items: list[Node | Arrow | Group] = [Node("stem", _lines("7×7\nmax pool", notes.get("maxpool")), INPUT)]
    chain = ["stem"]
    for stage in range(3):
        places = (3 * stage, 3 * stage + 1)  # in the network, a transition follows every two cells
        nodes = [
            Node(
                f"cell{place}",
                _table(f"cell {place - stage + 1}", cells[place - stage], notes.get(f"cells.{place}")),
                {"shape": "plain", "style": ""},
            )
            for place in places
        ]
        items.append(Group(nodes, FRAME | {"label": f"stage {stage + 1}"}, f"cluster stage {stage + 1}"))
        chain += [node.name for node in nodes]
        if stage < 2:
            after = places[1] + 1
            items.append(Node(f"cell{after}", _lines("1×1\naverage pool", notes.get(f"cells.{after}"))))
            chain.append(f"cell{after}")
    items += [
        Group(
            [Node("average", pooling, OUTPUT), Node("halves", "1×1\naverages of\nboth halves", OUTPUT)],
            {"rank": "same"},
        ),
        *(Arrow(tail, head, {"weight": "20"}) for tail, head in pairwise([*chain, "average"])),
        Arrow("cell5", "halves", {"color": _LINE}),
    ]
    count = sum(name in _BETWEEN_BRANCHES for cell in cells for name in cell)
    heading = title(f"MSINet · branches learn from each other at {count} of 12 places", caption)
    return Drawing("cells", heading, items, BOX)


def _lines(text: str, note: str | None) -> str:
    return text if note is None else f"{text}\n{note}"


def _table(name: str, interactions: tuple[str, str], note: str | None) -> str:
    """Return the layers of a cell as an HTML-like table with a column for each branch."""
    rows = [
        _row("<b>a</b>", "<b>b</b>"),
        _row("1×1", "1×1"),
        _row("light 3×3", "3 × light 3×3"),
        _across(*_LOOKS[interactions[0]]),
        _row("light 3×3", "3 × light 3×3"),
        _across(*_LOOKS[interactions[1]]),
        _row("1×1", "1×1"),
        _across("white", _INK, "a + b + identity"),
        *([] if note is None else [_across("white", _INK, note)]),
    ]
    head = f'<tr><td colspan="2"><b>{name}</b></td></tr><hr/>'
    frame = f'border="1" cellborder="0" cellspacing="0" cellpadding="4" color="{_INK}" style="rounded"'
    return f'<<table {frame} bgcolor="white">{head}{"".join(rows)}</table>>'


def _row(a: str, b: str) -> str:
    return f'<tr><td><font color="{_INK}">{a}</font></td><vr/><td><font color="{_INK}">{b}</font></td></tr>'


def _across(fill: str, ink: str, text: str) -> str:
    return f'<tr><td colspan="2" bgcolor="{fill}"><font color="{ink}">{text}</font></td></tr>'
