"""The picture of the `osnet_ain` space: OSNet's sequence of blocks, and the place of instance norm (IN) in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from autoreid.spaces.drawing import ACCENT, BOX, FRAME, INPUT, OUTPUT, Arrow, Drawing, Group, Node, title

_INK = "#455a64"


def blocks_drawing(
    stages: Sequence[Sequence[str]],
    stem_in: bool,
    caption: str,
    shapes: Mapping[str, str] | None = None,
    pooling: str = "average",
) -> Drawing:
    """Return the drawing of a whole OSNet, with the layers of its six blocks from top to bottom.

    Instance norm is magenta: instead of the batch norm before the addition, after the addition, or both. The title has
    the number of blocks with instance norm, and the caption.

    Args:
        stages: names of the blocks of each stage.
        stem_in: whether the norm after the first convolution is instance norm.
        caption: for example "quickstart · epoch 3 · mAP 41.2 %".
        shapes: output shape C × H × W of each module, by its name; None to omit them.
        pooling: how the last map is pooled.
    """
    notes = shapes or {}
    items: list[Node | Arrow | Group] = [
        Node("stem", _lines(f"7×7, {'IN' if stem_in else 'BN'}\nmax pool", notes.get("maxpool")), INPUT)
    ]
    chain = ["stem"]
    for number, stage in enumerate(stages, start=1):
        # In the network's module names, the first convolution is number 1.
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
    items.append(Node("embedding", f"{pooling}\nlinear, 512", OUTPUT))
    items += [Arrow(tail, head) for tail, head in pairwise([*chain, "embedding"])]
    count = sum(block != "plain" for stage in stages for block in stage)
    heading = title(f"OSNet · IN in {count} of 6 blocks", caption)
    return Drawing("blocks", heading, items, BOX)


def _lines(text: str, note: str | None) -> str:
    return text if note is None else f"{text}\n{note}"


def _table(name: str, note: str | None) -> str:
    """Return the layers of a block as an HTML-like table."""
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
        return f'<tr><td bgcolor="{ACCENT}"><font color="white"><b>{text}</b></font></td></tr>'
    return f'<tr><td><font color="{_INK}">{text}</font></td></tr>'
