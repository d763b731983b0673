"""Draw Graphviz .gv texts with the `dot` program."""

from __future__ import annotations

from pathlib import Path

import graphviz

from autoreid.errors import RunError
from autoreid.files import write_atomically


def draw_graph(gv_path: Path, folder: Path) -> Path:
    """Draw a .gv text as a PNG file of the same name in a folder, and return the path of the picture.

    Raises:
        RunError: `dot` is not installed or fails, or a file cannot be read or written.
    """
    try:
        png = graphviz.pipe("dot", "png", gv_path.read_bytes(), quiet=True)
    except graphviz.ExecutableNotFound as error:
        remedy = "install it with `apt install graphviz` or `conda install graphviz`"
        raise RunError(
            f"Graphviz's `dot` program, which draws genotypes, is not on PATH; {remedy}"
        ) from error
    except graphviz.CalledProcessError as error:
        lines = (error.stderr or b"").decode(errors="replace").split("\n")
        raise RunError(f"{gv_path}: `dot` cannot draw the graph: {lines[0] or error}") from error
    except OSError as error:
        raise RunError(f"{gv_path}: cannot draw the graph: {error.strerror}") from error
    picture = folder / f"{gv_path.stem}.png"
    write_atomically(picture, png)
    return picture
