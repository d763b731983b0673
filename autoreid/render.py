"""`python -m autoreid.render`: draw genotypes as pictures, independently of the run that found them."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from autoreid.cli import run_command
from autoreid.config import expand
from autoreid.errors import DataError
from autoreid.files import make_folder
from autoreid.reporting.dot import draw_graph
from autoreid.reporting.genotype_graph import write_graphs
from autoreid.spaces.genotype import Genotype

_DESCRIPTION = """\
Draw genotypes as pictures; a genotype of cells gives two, for the normal and the reduction cell. Requires Graphviz's
`dot`.

PATH is a genotype (.json), a graph description written by a run (.gv), or a folder. In a folder, every .gv file is
drawn, and every .json file without one. Existing pictures of the same name are replaced.
"""
_EXAMPLES = """\
examples:
  python -m autoreid.render searched_genotypes/quickstart
  python -m autoreid.render searched_genotypes/quickstart/EP03.json --output pictures

exit status: 0 all drawn; 1 `dot` is missing or fails, or a picture cannot be written; 2 a PATH is wrong
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw what the command line names, print the path of each picture, and return the exit status."""

    def command() -> int:
        arguments = _parser().parse_args(argv)
        if arguments.output is not None:
            make_folder(arguments.output, "choose another --output")
        for path in arguments.paths:
            for picture in _render(path, arguments.output or (path if path.is_dir() else path.parent)):
                print(picture)
        return 0

    return run_command(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.render",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", type=expand, metavar="PATH", help="genotype, graph description or folder"
    )
    parser.add_argument(
        "--output",
        type=expand,
        metavar="FOLDER",
        help="folder for the pictures (default: the folder of each PATH)",
    )
    return parser


def _render(path: Path, folder: Path) -> Iterator[Path]:
    """Draw one PATH of the command line into a folder; yields each picture after writing it."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        texts = sorted(path.glob("*.gv"))
        drawn = {text.stem.rpartition("-")[0] for text in texts}
        genotypes = [file for file in sorted(path.glob("*.json")) if file.stem not in drawn]
        if not texts and not genotypes:
            raise DataError(
                f"{path}: nothing to draw: the folder contains no genotype (.json) and no graph description (.gv)"
            )
        for file in [*texts, *genotypes]:
            yield from _render(file, folder)
    elif path.suffix == ".gv":
        yield draw_graph(path, folder)
    elif path.suffix == ".json":
        caption = f"{path.absolute().parent.name} · {path.stem}"
        # Written to a temporary folder: a run's own graph description, with epoch and mAP, must not be replaced.
        with tempfile.TemporaryDirectory() as scratch:
            for text in write_graphs(Genotype.load(path), Path(scratch), path.stem, caption):
                yield draw_graph(text, folder)
    else:
        raise DataError(
            f"{path}: cannot be drawn: must be a genotype (.json), a graph description (.gv) or a folder"
        )


if __name__ == "__main__":
    sys.exit(main())
