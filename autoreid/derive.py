"""python -m autoreid.derive: create the training config of the network that a genotype describes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.cli import run_command
from autoreid.config import Config, expand
from autoreid.errors import ConfigError
from autoreid.recipes import load_config, override_of
from autoreid.trials.trial import require_derived

_EXAMPLES = """\
examples:
  python -m autoreid.derive runs/darts_triplet --config configs/retrain.yaml --output derived/darts_triplet
  python -m autoreid.derive searched_genotypes/published/auto_reid.json --config configs/retrain.yaml \\
      --output derived/auto_reid model.options.channels=24 training.epochs=100
  python -m autoreid.derive runs/darts_triplet --random 0 --config configs/retrain.yaml --output derived/random

writes genotype.json and its pictures, config.yaml (for python -m autoreid.train) and network.png; copies the rounds of
a tournament
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.derive",
        description="Create the training config of the network that a genotype describes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        type=expand,
        help="JSON file of a genotype, run folder of a finished search, or folder of a tournament",
    )
    parser.add_argument(
        "--config", type=expand, required=True, metavar="FILE", help="recipe for training the network"
    )
    parser.add_argument("--output", type=expand, required=True, metavar="FOLDER", help="folder for the files")
    parser.add_argument(
        "--random",
        type=int,
        metavar="SEED",
        help="use a random genotype of about the same size instead, with the operations of the search if the source is "
        "a run folder",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override the recipe's"
    )
    options = parser.parse_intermixed_args(arguments)
    if options.random is not None and options.random < 0:
        raise ConfigError(f"command line: --random {options.random}: must be at least 0")
    return options


def read_recipe(recipe: Path, output: Path, overrides: Sequence[str]) -> Config:
    """Return the config of the training, which is named like the folder and reads the genotype in it.

    Raises:
        ConfigError: the recipe is wrong, or does not train a derived network.
    """
    path = override_of("model.options.genotype", output / "genotype.json")
    config = load_config(recipe, [override_of("task_name", output.name), *overrides, path])
    require_derived(config, recipe)
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        config = read_recipe(options.config, options.output, options.overrides)
        from autoreid.commands.derive import execute

        execute(options, config)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
