"""Prepare a data set from downloaded archives, or check an existing one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autoreid.cli import run_command
from autoreid.config import expand
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

published data sets: {_NAMES}
Any other NAME is a folder with your own data below --root. If interrupted, run the same command again to resume.

exit status: 0 every image can be read; 1 some are broken; 2 the command line, an archive or the layout is wrong
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; raises ConfigError if options contradict each other."""
    parser = argparse.ArgumentParser(
        description="Unpack the archives of a data set, convert its layout and check every image.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the data set")
    add(
        "--archive",
        type=expand,
        action="append",
        metavar="FILE",
        help="zip or tar archive, list or .mat file; may be repeated",
    )
    add(
        "--root",
        type=expand,
        required=True,
        metavar="DIR",
        help="folder of all data sets: data.root of a config",
    )
    add("--check", action="store_true", help="check an existing data set, without --archive")
    options = parser.parse_args(arguments)
    if options.check == bool(options.archive):
        raise ConfigError("give either --archive FILE, or --check to check an existing data set")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

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
