"""The picture of the `osnet_ain` space: OSNet's column of blocks, and in each where instance norm (IN) stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from autoreid.spaces.drawing import BOX, FRAME, PAGE, Arrow, Drawing, Group, Node, title

_PAGE = PAGE | {"ranksep": "0.25", "nodesep": "0.2", "newrank": "true"}
_NODE = BOX | {"fontname": "Helvetica", "fontsize": "13", "margin": "0.1,0.06", "fillcolor": "#f5f5f5"}
#: Instance norm is what is searched for, and must be seen first.
_IN, _INK = "#d6006c", "#455a64"


def blocks_drawing(
    stages: Sequence[Sequence[str]], caption: str, shapes: Mapping[str, str] | None = None
) -> Drawing:
    """A whole OSNet, each of its six blocks with its layers top to bottom.

    Instance norm is magenta wherever the genotype has it: before the addition in place of the batch norm, after
    it, or both. Above stand the caption, for example "quickstart · epoch 3 · mAP 41.2 %", and how many of the six
    blocks have it.

    Args:
        stages: the names of the blocks.
        shapes: C × H × W of what each module gives, by its name; None to leave them out.
    """
    notes = shapes or {}
    items: list[Node | Arrow | Group] = [
        Node("stem", _lines("7×7, IN\nmax pool", notes.get("maxpool")), {"fillcolor": "#ffe0b2"})
    ]
    chain = ["stem"]
    for number, stage in enumerate(stages, start=1):
        # The network counts its first convolution as 1.
        blocks = [
            Node(
                f"block{number}{place}",
                _table(block, notes.get(f"conv{number + 1}.{place}")),
                {"shape": "plain", "style": ""},
            )
            for place, block in enumerate(stage)
        ]
        transition, text = ("conv5", "1×1") if number == 3 else (f"pool{number + 1}", "1×1\naverage pool")
        items.append(Group(blocks, FRAME | {"label": f"stage {number}"}, f"cluster stage {number}"))
        items.append(Node(f"after{number}", _lines(text, notes.get(transition))))
        chain += [*(block.name for block in blocks), f"after{number}"]
    items.append(Node("embedding", "average\nlinear, 512", {"fillcolor": "#c8e6c9"}))
    items += [Arrow(tail, head) for tail, head in pairwise([*chain, "embedding"])]
    count = sum(block != "plain" for stage in stages for block in stage)
    heading = title(f"OSNet · IN in {count} of 6 blocks", caption)
    return Drawing("blocks", heading, items, _PAGE, _NODE, {"arrowsize": "0.7"})


def _lines(text: str, note: str | None) -> str:
    return text if note is None else f"{text}\n{note}"


def _table(name: str, note: str | None) -> str:
    """A block's layers as a table."""
    inside, after = name in ("in_inside", "in_both"), name in ("in_after", "in_both")
    layers = [
        _row("4 streams · gate"),
        _row("1×1"),
        _row("IN", highlight=True) if inside else _row("BN"),
        _row("+ identity"),
        _row("IN", highlight=True) if after else _row(" "),
        _row("ReLU"),
        *([] if note is None else ["<hr/>", _row(note)]),
    ]
    frame = f'border="1" cellborder="0" cellspacing="0" cellpadding="4" color="{_INK}" style="rounded"'
    return f'<<table {frame} bgcolor="white"><tr><td><b>{name}</b></td></tr><hr/>{"".join(layers)}</table>>'


def _row(text: str, highlight: bool = False) -> str:
    if highlight:
        return f'<tr><td bgcolor="{_IN}"><font color="white"><b>{text}</b></font></td></tr>'
    return f'<tr><td><font color="{_INK}">{text}</font></td></tr>'
