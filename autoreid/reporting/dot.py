"""Pictures of graph texts, laid out by Graphviz's `dot` program."""

from __future__ import annotations

from pathlib import Path

import graphviz

from autoreid.errors import RunError
from autoreid.files import write_atomically


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
