"""Draw Graphviz .gv texts with the `dot` program."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from PIL import Image

from autoreid.errors import RunError
from autoreid.files import write_atomically

#: How long `dot` may take for a picture. It needs less than a second.
SECONDS = 20.0
#: The end of every complete PNG file.
_PNG_END = b"IEND\xaeB`\x82"


class DrawingTimeoutError(RunError):
    """`dot` did not end in time; it would most likely not do so for another picture either."""


def draw_graph(gv_path: Path, folder: Path) -> Path:
    """Draw a .gv text as a PNG file of the same name in a folder, and return the path of the picture.

    Raises:
        RunError: `dot` is not installed or fails, its output is not a complete picture, or a file cannot be read or
            written.
        DrawingTimeoutError: `dot` did not end within `SECONDS`.
    """
    if shutil.which("dot") is None:
        remedy = "install it with `apt install graphviz` or `conda install graphviz`"
        raise RunError(f"Graphviz's `dot` program, which draws genotypes, is not on PATH; {remedy}")
    try:
        png = _run_dot(gv_path)
    except OSError as error:
        raise RunError(f"{gv_path}: cannot draw the graph: {error.strerror}") from error
    if not _is_complete(png):
        raise RunError(f"{gv_path}: `dot` did not write a complete picture ({len(png)} bytes)")
    picture = folder / f"{gv_path.stem}.png"
    write_atomically(picture, png)
    return picture


def _run_dot(gv_path: Path) -> bytes:
    """Return the output of `dot`, of which no process is left."""
    # Files instead of pipes: a child of `dot` could keep a pipe open.
    with gv_path.open("rb") as text, tempfile.TemporaryFile() as png, tempfile.TemporaryFile() as complaint:
        process = subprocess.Popen(
            ["dot", "-Tpng"], stdin=text, stdout=png, stderr=complaint, start_new_session=True
        )
        try:
            status = process.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            raise DrawingTimeoutError(f"{gv_path}: `dot` did not end within {SECONDS:g} s") from error
        finally:
            _kill(process)
        if status:
            complaint.seek(0)
            lines = complaint.read().decode(errors="replace").split("\n")
            raise RunError(f"{gv_path}: `dot` cannot draw the graph: {lines[0] or f'exit status {status}'}")
        png.seek(0)
        return png.read()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the processes of a session; they may not even end then, for example on a file system that is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _is_complete(png: bytes) -> bool:
    try:
        Image.open(io.BytesIO(png), formats=["PNG"]).load()
    except (OSError, SyntaxError, ValueError):
        return False
    return png.endswith(_PNG_END)
