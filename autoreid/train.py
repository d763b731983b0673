"""python -m autoreid.train: run the search or training of a config, as a single process or as one of many ranks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from autoreid.cli import run_command
from autoreid.config import Config, expand
from autoreid.recipes import describe_options, load_config
from autoreid.spaces.genotype import with_genotype_text

_EXAMPLES = """\
examples:
  python -m autoreid.train --config configs/quickstart.yaml
  python -m autoreid.train --config configs/darts_triplet.yaml data.root=/data training.epochs=100
  torchrun --nproc-per-node 2 -m autoreid.train --config configs/quickstart.yaml
  srun python -m autoreid.train --config configs/darts_triplet.yaml

To resume a run, repeat the same command.

Exit status: 0 finished, or saved and stopped by a signal; 1 the run failed; 2 error in the command line,
config or data; 3 the ranks disagree.

config keys (default): meaning
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.train",
        description="Search for or train a network for person re-identification, as described by a config file.",
        epilog=_EXAMPLES + describe_options(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=expand, required=True, metavar="FILE", help="YAML recipe, as in configs/"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override the recipe's"
    )
    # Intermixed: overrides are allowed before, between and after options.
    return parser.parse_intermixed_args(arguments)


def with_genotype(config: Config) -> Config:
    """Return a config in which the path of a derived network's genotype is replaced by the genotype itself.

    The config then needs no other file.
    """
    if config.model.name != "derived" or "genotype" not in config.model.options:
        return config
    model = config.model.model_copy(update={"options": with_genotype_text(config.model.options)})
    return config.model_copy(update={"model": model})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        config = with_genotype(load_config(options.config, options.overrides))
        if options.print_config:
            print(config.to_yaml(), end="")
            return 0
        from autoreid.commands.train import execute

        execute(config)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
