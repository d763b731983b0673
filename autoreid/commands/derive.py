"""Create the training config of the network that a genotype describes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from autoreid.config import Config
from autoreid.files import make_folder, write_atomically
from autoreid.models import check_input_size, count_macs, count_parameters
from autoreid.reporting.genotype_graph import draw_genotype, draw_where_possible
from autoreid.reporting.network_graph import network_graph
from autoreid.spaces.build import build_model
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.space import Derived
from autoreid.trials.genotypes import random_of_size, read_found


def execute(options: argparse.Namespace, config: Config) -> None:
    """Derive the network of the genotype that the command line names, or of a random one of the same size."""
    found = read_found(options.source)
    genotype = found.genotype
    if options.random is not None:
        genotype = random_of_size(found, options.random, config.model.options)
    network = derive(genotype, config, options.output)
    if options.random is None:
        copy_rounds(options.source, options.output)
    print(summary(config, network))
    print(f"{options.output}: genotype.json, config.yaml and pictures")
    print(f"next: python -m autoreid.train --config {options.output / 'config.yaml'}")


def derive(genotype: Genotype, config: Config, output: Path) -> Derived:
    """Write genotype, config and pictures to a folder.

    Args:
        config: the training config, whose genotype is `genotype.json` in the folder.

    Returns:
        The network, built for one identity.

    Raises:
        ConfigError: an option of the network is wrong, or the folder is not writable.
    """
    name = output.name
    network = _build({**config.model.options, "genotype": genotype})
    check_input_size(network, config.data.height, config.data.width)
    make_folder(output, "choose another --output")
    genotype.save(output / "genotype.json")
    write_atomically(output / "config.yaml", config.to_yaml().encode())
    draw_genotype(genotype, output, "genotype", name)
    graph = network_graph(network, config.data.height, config.data.width, name)
    write_atomically(output / "network.gv", graph.source.encode())
    draw_where_possible([output / "network.gv"])
    return network


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
