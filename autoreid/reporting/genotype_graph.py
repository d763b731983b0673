"""Genotypes as pictures, laid out by Graphviz's `dot` program where it is installed."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import graphviz

from autoreid.errors import RunError
from autoreid.files import make_folder, write_atomically
from autoreid.reporting.osnet_graph import blocks_graph
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype
from autoreid.spaces.reid_cell.genotype import Cell, CellGenotype

logger = logging.getLogger(__name__)

#: A cell's inputs and output, named as in the DARTS paper, in Graphviz's HTML labels.
_INPUTS = ("c<sub>k-2</sub>", "c<sub>k-1</sub>")
_OUTPUT = "c<sub>k</sub>"


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

_PAGE = {
    "rankdir": "LR",
    "ranksep": "0.17",
    "nodesep": "0.18",
    "bgcolor": "white",
    "dpi": "100",
    "pad": "0.15",
}
_PAGE |= {"labelloc": "t", "fontname": "Helvetica", "fontsize": "16"}
_NODE = {"shape": "box", "style": "rounded,filled", "color": "#263238", "fontcolor": "#263238"}
_NODE |= {
    "fontname": "Helvetica-Bold",
    "fontsize": "15",
    "height": "0.45",
    "width": "0.45",
    "margin": "0.1,0.03",
}

_warned = False


def cell_graph(cell: Cell, kind: str, caption: str) -> graphviz.Digraph:
    """The graph of one cell, left to right: both inputs, nodes 0 to N-1, the output (their concatenation).

    Each edge carries its operation in a box on the line: convolutions blue, pools green, skips grey and
    dashed, part_aware thick and magenta. Above stand the kind ("normal", "reduce") and the caption, for
    example "quickstart · epoch 3 · mAP 41.2 %". Equal arguments give equal text.
    """
    # The space stands inside the font element, which Graphviz does not allow to be empty.
    title = f'<b>{html.escape(kind)} cell</b><font color="#546e7a">   {html.escape(caption)}</font>'
    graph = graphviz.Digraph(
        f"{kind} cell",
        graph_attr=_PAGE | {"label": f"<{title}>"},
        node_attr=_NODE,
        edge_attr={"arrowsize": "0.8"},
    )
    # The unseen edge keeps the inputs in this order, so that pictures of successive epochs compare.
    with graph.subgraph(graph_attr={"rank": "same"}) as inputs:
        for source, label in enumerate(_INPUTS):
            inputs.node(f"input{source}", f"<{label}>", fillcolor="#ffe0b2")
        inputs.edge("input0", "input1", style="invis")
    for node in range(len(cell)):
        graph.node(f"node{node}", str(node), fillcolor="#e3f2fd", shape="circle", margin="0")
    graph.node("output", f"<{_OUTPUT}>", fillcolor="#c8e6c9")
    for node, edges in enumerate(cell):
        for place, (operation, source) in enumerate(edges):
            tail = f"input{source}" if source < len(_INPUTS) else f"node{source - len(_INPUTS)}"
            _add_edge(graph, tail, f"node{node}", f"edge{node}{'ab'[place]}", operation)
        graph.edge(f"node{node}", "output", color="#b0bec5", penwidth="1.2")
    return graph


def _add_edge(graph: graphviz.Digraph, tail: str, head: str, name: str, operation: str) -> None:
    """Adds an edge with its operation in a box on the line.

    Graphviz's own edge labels float beside the lines, where it is not clear to which of two they belong.
    """
    look = _LOOKS[operation.split("_")[0]]
    graph.node(
        name,
        operation,
        **{"fillcolor": look.fill, "color": look.colour, "fontcolor": look.ink, "fontname": look.font},
        **{"fontsize": "13", "height": "0.26", "width": "0", "margin": "0.07,0.02"},
    )
    line = {"color": look.colour, "penwidth": look.width, "style": look.line}
    graph.edge(tail, name, arrowhead="none", **line)
    graph.edge(name, head, **line)


def genotype_graphs(genotype: Genotype, caption: str) -> dict[str, graphviz.Digraph]:
    """A genotype's graphs by what they show: "normal" and "reduce" of cells, "blocks" of OSNet."""
    if isinstance(genotype, OsnetAinGenotype):
        return {"blocks": blocks_graph(genotype, caption)}
    assert isinstance(genotype, CellGenotype)  # noqa: S101 (there are two spaces)
    return {kind: cell_graph(cell, kind, caption) for kind, cell in genotype.cells()}


def write_graphs(genotype: Genotype, folder: Path, stem: str, caption: str) -> list[Path]:
    """Writes the graph texts, such as `<stem>-normal.gv` and `<stem>-reduce.gv`, each replaced in one step.

    Makes the folder where it is missing. Raises ConfigError or RunError, naming the path, when it cannot.
    """
    make_folder(folder, "give a folder for the genotypes that can be written")
    paths = []
    for part, graph in genotype_graphs(genotype, caption).items():
        paths.append(folder / f"{stem}-{part}.gv")
        write_atomically(paths[-1], graph.source.encode())
    return paths


def draw_graph(gv_path: Path, folder: Path) -> Path:
    """Draws a .gv text as a PNG of the same name in a folder and returns its path.

    Raises RunError that says what to do when there is no `dot` program or it fails, or the text or the
    picture cannot be read or written.
    """
    try:
        png = graphviz.pipe("dot", "png", gv_path.read_bytes(), quiet=True)
    except graphviz.ExecutableNotFound as error:
        remedy = "`apt install graphviz` or `conda install graphviz` gets it"
        raise RunError(f"no `dot` program on PATH, which draws genotypes: {remedy}") from error
    except graphviz.CalledProcessError as error:
        lines = (error.stderr or b"").decode(errors="replace").split("\n")
        raise RunError(f"{gv_path}: `dot` cannot draw the graph: {lines[0] or error}") from error
    except OSError as error:
        raise RunError(f"{gv_path}: cannot draw the graph: {error.strerror}") from error
    picture = folder / f"{gv_path.stem}.png"
    write_atomically(picture, png)
    return picture


def draw_genotype(genotype: Genotype, folder: Path, stem: str, caption: str) -> list[Path]:
    """Writes a genotype's graphs, such as `<stem>-normal.gv` and `<stem>-reduce.gv`, with a .png beside each.

    Returns the pictures that could be drawn.
    """
    return draw_where_possible(write_graphs(genotype, folder, stem, caption))


def draw_where_possible(gv_paths: Iterable[Path]) -> list[Path]:
    """Draws .gv texts as a .png beside each, and returns the pictures drawn.

    A picture that cannot be drawn, say for want of the `dot` program, does not stop a search: the process
    warns once, and the texts stay for `python -m autoreid.render`.
    """
    pictures = []
    for gv_path in gv_paths:
        try:
            pictures.append(draw_graph(gv_path, gv_path.parent))
        except RunError as error:
            _warn_once(error)
    return pictures


def _warn_once(error: RunError) -> None:
    """One warning a process: a search of 210 epochs must not repeat it 420 times."""
    global _warned
    if not _warned:
        later = "the graph texts are kept and `python -m autoreid.render PATH` draws them later"
        logger.warning("%s; %s", error, later)
        _warned = True
