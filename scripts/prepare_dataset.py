"""Prepares a data set from downloaded archives, or checks one (--help says more)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.cli import run_command
from autoreid.data.datasets import BENCHMARKS
from autoreid.data.prepare import check_dataset, prepare_dataset
from autoreid.errors import ConfigError

_NAMES = ", ".join(BENCHMARKS)
_EPILOG = f"""\
examples:
  python scripts/prepare_dataset.py market1501 --archive Market-1501-v15.09.15.zip --root data
  python scripts/prepare_dataset.py cuhk03_labeled --archive cuhk03_release.zip \\
      --archive cuhk03_new_protocol_config_labeled.mat --archive cuhk03_new_protocol_config_detected.mat --root data
  python scripts/prepare_dataset.py occluded_duke --archive DukeMTMC-reID.zip --archive train.list \\
      --archive query.list --archive gallery.list --root data
  python scripts/prepare_dataset.py market1501 --check --root data

Published data sets: {_NAMES}.
Any other name is a folder of one's own below --root. Interrupted, the same command goes on.
exit status: 0 every image can be read; 1 some are broken; 2 the command line, an archive or the layout is wrong
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; raises ConfigError if its options do not fit together."""
    parser = argparse.ArgumentParser(
        description="Unpacks the archives of a data set, lays it out and looks at every image.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="of the data set")
    add(
        "--archive",
        type=Path,
        action="append",
        metavar="FILE",
        help="zip, tar or list; may stand several times",
    )
    add("--root", type=Path, required=True, metavar="DIR", help="holds the data sets: data.root of a config")
    add("--check", action="store_true", help="look at a data set that is there; without --archive")
    options = parser.parse_args(arguments)
    if options.check == bool(options.archive):
        raise ConfigError("give either --archive with what to unpack, or --check")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if options.check:
            findings = check_dataset(options.name, options.root)
        else:
            findings = prepare_dataset(options.name, options.archive, options.root)
        print("\n".join(findings.lines()))
        return 1 if findings.broken else 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
