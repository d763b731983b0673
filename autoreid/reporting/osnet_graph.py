"""OSNet as a picture: its column of blocks, and in each where instance norm (IN) stands."""

from __future__ import annotations

import html
from collections.abc import Mapping

import graphviz

from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype

_PAGE = {
    "rankdir": "LR",
    "ranksep": "0.25",
    "nodesep": "0.2",
    "bgcolor": "white",
    "dpi": "100",
    "pad": "0.15",
}
_PAGE |= {"labelloc": "t", "fontname": "Helvetica", "fontsize": "16", "newrank": "true"}
_BOX = {"shape": "box", "style": "rounded,filled", "color": "#263238", "fontname": "Helvetica"}
_BOX |= {"fontsize": "13", "margin": "0.1,0.06", "fillcolor": "#f5f5f5"}
_STAGE = {"style": "rounded,filled", "color": "#b0bec5", "fillcolor": "#fafafa", "fontsize": "13"}
_STAGE |= {"fontname": "Helvetica", "margin": "10"}
#: Instance norm is what is searched for, and must be seen first.
_IN, _INK = "#d6006c", "#455a64"


def blocks_graph(
    genotype: OsnetAinGenotype, caption: str, notes: Mapping[str, str] | None = None
) -> graphviz.Digraph:
    """The graph of a whole OSNet, left to right, each of its six blocks with its layers top to bottom.

    Instance norm is magenta wherever the genotype has it: before the addition in place of the batch norm, after
    it, or both. Above stand the caption, for example "quickstart · epoch 3 · mAP 41.2 %", and how many of the six
    blocks have it. Equal arguments give equal text.

    Args:
        notes: a line below a layer, such as its output's shape, by its name in the network.
    """
    lines = notes or {}

    def box(text: str, name: str) -> str:
        return "\n".join(filter(None, [text, lines.get(name)]))

    count = sum(block != "plain" for block in genotype.blocks)
    title = f"<b>OSNet · IN in {count} of 6 blocks</b>"
    title += f'<font color="#546e7a">   {html.escape(caption)}</font>'
    graph = graphviz.Digraph(
        "blocks", graph_attr=_PAGE | {"label": f"<{title}>"}, node_attr=_BOX, edge_attr={"arrowsize": "0.7"}
    )
    graph.node("stem", box("7×7, IN\nmax pool", "maxpool"), fillcolor="#ffe0b2")
    for number, stage in enumerate(genotype.stages, start=1):
        frame = {"label": f"stage {number}"}
        # The network counts its first convolution as 1.
        transition = "conv5" if number == 3 else f"pool{number + 1}"
        with graph.subgraph(name=f"cluster stage {number}", graph_attr=_STAGE | frame) as inside:
            for place, block in enumerate(stage):
                table = _block(block, lines.get(f"conv{number + 1}.{place}"))
                inside.node(f"block{number}{place}", table, shape="plain", style="")
        graph.node(f"after{number}", box("1×1" if number == 3 else "1×1\naverage pool", transition))
    graph.node("embedding", "average\nlinear, 512", fillcolor="#c8e6c9")
    tail = "stem"
    for number in (1, 2, 3):
        for head in (f"block{number}0", f"block{number}1", f"after{number}"):
            graph.edge(tail, head)
            tail = head
    graph.edge(tail, "embedding")
    return graph


def _block(name: str, note: str | None) -> str:
    """A block's layers as a table, an HTML label of Graphviz's."""
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
