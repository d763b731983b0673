"""python -m autoreid.derive: create the training config of the network that a genotype describes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from autoreid.cli import run_command
from autoreid.config import Config
from autoreid.errors import ConfigError
from autoreid.files import make_folder, write_atomically
from autoreid.models import check_input_size, count_macs, count_parameters
from autoreid.recipes import load_config, override_of
from autoreid.reporting.genotype_graph import draw_genotype, draw_where_possible
from autoreid.reporting.network_graph import network_graph
from autoreid.spaces import Derived, Genotype, build_model
from autoreid.trials.genotypes import random_of_size, read_found
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
        type=Path,
        help="JSON file of a genotype, run folder of a finished search, or folder of a tournament",
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="recipe for training the network"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the files")
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


def derive(
    genotype: Genotype, recipe: Path, output: Path, overrides: Sequence[str]
) -> tuple[Config, Derived]:
    """Write genotype, config and pictures to a folder.

    Returns:
        The training config, and its network, built for one identity.

    Raises:
        ConfigError: the recipe does not train a derived network, or the folder is not writable.
    """
    name = output.name
    path = override_of("model.options.genotype", output / "genotype.json")
    named = [override_of("task_name", name), *overrides, path]
    config = load_config(recipe, named)
    require_derived(config, recipe)
    network = _build({**config.model.options, "genotype": genotype})
    check_input_size(network, config.data.height, config.data.width)
    make_folder(output, "choose another --output")
    genotype.save(output / "genotype.json")
    write_atomically(output / "config.yaml", config.to_yaml().encode())
    draw_genotype(genotype, output, "genotype", name)
    graph = network_graph(network, config.data.height, config.data.width, name)
    write_atomically(output / "network.gv", graph.source.encode())
    draw_where_possible([output / "network.gv"])
    return config, network


def copy_rounds(source: Path, output: Path) -> None:
    """Copy the rounds of the tournament that has chosen the genotype, so that they stay with the network."""
    for name in ("rounds.json", "rounds.png"):
        if (source / name).exists():
            write_atomically(output / name, (source / name).read_bytes())


def _build(options: Mapping[str, Any]) -> Derived:
    return cast(Derived, build_model("derived", 1, **options))


def summary(config: Config, network: nn.Module) -> str:
    """Return the network's size as one line of text."""
    height, width = config.data.height, config.data.width
    macs = count_macs(network, height, width) / 1e9
    return f"{count_parameters(network) / 1e6:.2f} M parameters, {macs:.3f} GMACs at {height}×{width}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""

    def command() -> int:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        found = read_found(options.source)
        genotype = found.genotype
        if options.random is not None:
            recipe = load_config(options.config, options.overrides)
            genotype = random_of_size(found, options.random, recipe.model.options)
        config, network = derive(genotype, options.config, options.output, options.overrides)
        if options.random is None:
            copy_rounds(options.source, options.output)
        print(summary(config, network))
        print(f"{options.output}: genotype.json, config.yaml and pictures")
        print(f"next: python -m autoreid.train --config {options.output / 'config.yaml'}")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
