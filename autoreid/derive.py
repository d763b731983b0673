"""python -m autoreid.derive: create the training config of the network that a genotype describes."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from autoreid.cli import run_command
from autoreid.config import Config
from autoreid.errors import ConfigError, DataError
from autoreid.files import make_folder, write_atomically
from autoreid.models import check_input_size, count_macs, count_parameters
from autoreid.recipes import load_config
from autoreid.reporting.genotype_graph import draw_genotype, draw_where_possible
from autoreid.reporting.network_graph import network_graph
from autoreid.spaces import Derived, Genotype, build_model

_EXAMPLES = """\
examples:
  python -m autoreid.derive runs/darts_triplet --config configs/retrain.yaml --output derived/darts_triplet
  python -m autoreid.derive searched_genotypes/published/auto_reid.json --config configs/retrain.yaml \\
      --output derived/auto_reid model.options.channels=24 training.epochs=100
  python -m autoreid.derive runs/darts_triplet --random 0 --config configs/retrain.yaml --output derived/random

writes genotype.json and its pictures, config.yaml (for python -m autoreid.train) and network.png
"""

#: Number of random genotypes sampled in search of one of the wanted size.
_ATTEMPTS = 64
#: Relative difference in parameters below which two networks count as equally large.
_TOLERANCE = 0.005


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m autoreid.derive",
        description="Create the training config of the network that a genotype describes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", type=Path, help="JSON file of a genotype, or run folder of a finished search"
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="recipe for training the network"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the files")
    parser.add_argument(
        "--or-better",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="other searches: use the one with the highest mAP, and skip those without a result",
    )
    parser.add_argument(
        "--random", type=int, metavar="SEED", help="use a random genotype of about the same size instead"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override the recipe's"
    )
    return parser.parse_intermixed_args(arguments)


def read_source(source: Path) -> Genotype:
    """Return the genotype in a JSON file, or in the result.json of a search's run folder.

    Raises:
        DataError: there is no valid genotype; the message names the file.
    """
    if not source.is_dir():
        return Genotype.load(source)
    result = source / "result.json"
    try:
        content = json.loads(result.read_bytes())
        return Genotype.parse(json.dumps(content["genotype"]), f"{result}: genotype")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{result}: contains no genotype; expected the result of a finished search"
        ) from error


def best_of(runs: Sequence[Path]) -> Path:
    """Return the run folder of the finished search with the highest final mAP.

    Raises:
        DataError: no search has finished.
    """
    measured: dict[Path, float] = {}
    for run in runs:
        try:
            measured[run] = float(json.loads((run / "result.json").read_bytes())["map"])
        except (OSError, ValueError, KeyError, TypeError):
            print(f"{run}: skipped, because it has no valid result.json", file=sys.stderr)
    if not measured:
        raise DataError(f"{', '.join(map(str, runs))}: none of these searches has finished")
    for run, value in measured.items():
        print(f"{run}: mAP {value:.1%}")
    return max(measured, key=lambda run: measured[run])


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
    named = [f"task_name={name}", *overrides, f"model.options.genotype={output / 'genotype.json'}"]
    config = load_config(recipe, named)
    if config.task != "train" or config.model.name != "derived":
        raise ConfigError(
            f"{recipe}: must have task: train and model.name: derived, as configs/retrain.yaml does"
        )
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


def random_of_size(like: Genotype, seed: int, options: dict[str, Any]) -> Genotype:
    """Return the first of the seed's random genotypes whose network is as large as that of `like`.

    If none is within the tolerance after all attempts, return the closest.
    """

    def parameters(genotype: Genotype) -> int:
        with torch.device("meta"):
            return count_parameters(_build({**options, "genotype": genotype}))

    rng = np.random.default_rng(seed)
    wanted = parameters(like)
    best, smallest = like, math.inf
    for _ in range(_ATTEMPTS):
        sampled = like.sample_like(rng)
        difference = abs(parameters(sampled) / wanted - 1)
        if difference < smallest:
            best, smallest = sampled, difference
        if smallest < _TOLERANCE:
            break
    return best


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
        source = best_of([options.source, *options.or_better]) if options.or_better else options.source
        genotype = read_source(source)
        if options.random is not None:
            recipe = load_config(options.config, options.overrides)
            genotype = random_of_size(genotype, options.random, dict(recipe.model.options))
        config, network = derive(genotype, options.config, options.output, options.overrides)
        print(summary(config, network))
        print(f"{options.output}: genotype.json, config.yaml and pictures")
        print(f"next: python -m autoreid.train --config {options.output / 'config.yaml'}")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
