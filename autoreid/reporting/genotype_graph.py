"""Genotypes as graph texts, and as pictures where Graphviz's `dot` program is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import graphviz

from autoreid.errors import RunError
from autoreid.files import make_folder, write_atomically
from autoreid.reporting.dot import draw_graph
from autoreid.spaces.drawing import Arrow, Drawing, Group, Node
from autoreid.spaces.genotype import Genotype

logger = logging.getLogger(__name__)

_warned = False


def as_graph(drawing: Drawing) -> graphviz.Digraph:
    """The graph of a drawing; equal drawings give equal text."""
    graph = graphviz.Digraph(
        drawing.name,
        graph_attr={**drawing.page, "label": f"<{drawing.title}>"},
        node_attr=dict(drawing.nodes),
        edge_attr=dict(drawing.arrows),
    )
    for item in drawing.items:
        if isinstance(item, Group):
            with graph.subgraph(name=item.name, graph_attr=dict(item.attributes)) as group:
                for member in item.items:
                    _add(group, member)
        else:
            _add(graph, item)
    return graph


def _add(graph: graphviz.Digraph, item: Node | Arrow) -> None:
    if isinstance(item, Node):
        graph.node(item.name, item.label, **item.attributes)
    else:
        graph.edge(item.tail, item.head, **item.attributes)


def write_graphs(genotype: Genotype, folder: Path, stem: str, caption: str) -> list[Path]:
    """Writes the graph texts, such as `<stem>-normal.gv` and `<stem>-reduce.gv`, each replaced in one step.

    Makes the folder where it is missing. Raises ConfigError or RunError, naming the path, when it cannot.
    """
    make_folder(folder, "give a folder for the genotypes that can be written")
    paths = []
    for part, drawing in genotype.drawings(caption).items():
        paths.append(folder / f"{stem}-{part}.gv")
        write_atomically(paths[-1], as_graph(drawing).source.encode())
    return paths


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
