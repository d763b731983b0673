"""Write genotypes as Graphviz .gv texts, and as pictures if the `dot` program is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import graphviz

from autoreid.errors import RunError
from autoreid.files import make_folder, write_atomically
from autoreid.reporting.dot import DrawingTimeoutError, draw_graph
from autoreid.spaces.drawing import ARROW, PAGE, Arrow, Drawing, Group, Node
from autoreid.spaces.genotype import Genotype

logger = logging.getLogger(__name__)

_warned = False
_hangs = False


def as_graph(drawing: Drawing) -> graphviz.Digraph:
    """Return the graph of a drawing. Equal drawings give equal texts."""
    graph = graphviz.Digraph(
        drawing.name,
        graph_attr={**PAGE, "label": f"<{drawing.title}>"},
        node_attr=dict(drawing.nodes),
        edge_attr=ARROW,
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
    """Write the .gv texts of a genotype atomically, for example `<stem>-normal.gv` and `<stem>-reduce.gv`.

    Raises:
        ConfigError: the folder cannot be created.
        RunError: a file cannot be written.
    """
    make_folder(folder, "choose a writable folder for the genotypes")
    paths = []
    for part, drawing in genotype.drawings(caption).items():
        paths.append(folder / f"{stem}-{part}.gv")
        write_atomically(paths[-1], as_graph(drawing).source.encode())
    return paths


def draw_genotype(genotype: Genotype, folder: Path, stem: str, caption: str) -> list[Path]:
    """Write the .gv texts of a genotype with a .png file for each, and return the paths of the pictures."""
    return draw_where_possible(write_graphs(genotype, folder, stem, caption))


def draw_where_possible(gv_paths: Iterable[Path]) -> list[Path]:
    """Draw .gv texts as .png files in the same folder, and return the paths of the pictures.

    A picture that cannot be drawn, for example because `dot` is not installed, does not stop a search. The first
    failure is logged as a warning, and `python -m autoreid.render` can draw the texts later. Once `dot` has hung, it
    is not called again.
    """
    global _hangs
    pictures = []
    for gv_path in gv_paths:
        if _hangs:
            break
        try:
            pictures.append(draw_graph(gv_path, gv_path.parent))
        except RunError as error:
            _hangs = isinstance(error, DrawingTimeoutError)
            _warn_once(error)
    return pictures


def _warn_once(error: RunError) -> None:
    """Log a warning only once per process: a search of 210 epochs would otherwise repeat it 420 times."""
    global _warned
    if not _warned:
        remedy = "the .gv files are kept; draw them later with `python -m autoreid.render PATH`"
        logger.warning("%s; %s", error, remedy)
        _warned = True
