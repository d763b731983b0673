"""python -m autoreid.tournament: choose the best of several genotypes by short trainings on held-out identities."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from autoreid.cli import run_command
from autoreid.config import Config, expand
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.trials.trial import require_derived, require_held_out

_EXAMPLES = """\
examples:
  python -m autoreid.tournament runs/search-seed0 runs/search-seed1 runs/search-seed2 --config configs/retrain.yaml \\
      --output tournaments/search evaluation.split=held_out data.held_out_fraction=0.2
  python -m autoreid.derive tournaments/search --config configs/retrain.yaml --output derived/found

All genotypes are trained for E epochs, the better half for 2 E, and so on until one is left. Each training starts from
new weights, with the recipe's schedule compressed to its epochs. The folder gets genotype.json (the winner),
rounds.json, rounds.png and trials.jsonl. The same command resumes; several processes with the same --output share the
trainings.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.tournament",
        description="Choose the best of several genotypes by short trainings, measured on held-out identities.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="genotype file, or run folder of a search; or section.key=value, which replaces a value of the recipe",
    )
    add("--config", type=expand, required=True, metavar="FILE", help="recipe to train the networks with")
    add("--output", type=expand, required=True, metavar="FOLDER", help="folder of the results")
    add(
        "--random",
        type=int,
        default=0,
        metavar="N",
        help="add N random genotypes of the same size, as a control",
    )
    add("--seed", type=int, default=0, metavar="S", help="seed of the random genotypes (default: 0)")
    add(
        "--epochs",
        type=int,
        metavar="E",
        help="epochs of the first round (default: an eighth of the recipe's)",
    )
    options = parser.parse_intermixed_args(arguments)
    # argparse cannot tell sources and overrides apart.
    words: list[str] = options.sources
    options.overrides = [word for word in words if _is_override(word)]
    options.sources = [Path(word) for word in words if not _is_override(word)]
    if not options.sources:
        raise ConfigError("command line: expected genotype files or run folders of searches")
    for name, least in (("random", 0), ("seed", 0), ("epochs", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"command line: --{name} {value}: must be at least {least}")
    return options


def _is_override(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def read_recipe(path: Path, overrides: Sequence[str]) -> Config:
    """Return the recipe of the trainings.

    Raises:
        ConfigError: it is wrong, does not train a derived network, or measures on test images.
    """
    recipe = load_config(path, overrides)
    require_derived(recipe, path)
    require_held_out(recipe, path)
    return recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        recipe = read_recipe(options.config, options.overrides)
        from autoreid.commands.tournament import execute

        execute(options, recipe)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
