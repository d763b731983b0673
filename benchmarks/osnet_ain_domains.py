"""Does the search for instance norm (IN) find what helps on a domain that nobody trained on?

    python -m benchmarks.osnet_ain_domains [--quick] [--folder DIR] [--searches N] [--trainings N] [--json]

For each search seed, `configs/osnet_ain_quickstart.yaml` searches on two synthetic domains of different style. The
found network is then trained by `configs/osnet_ain_quickstart_train.yaml` on the same two domains. So are a random
network of the space, OSNet without IN, OSNet with IN in the stem only and the published OSNet-AIN, all of one size and
with the same seed. Each is measured on 160 test people of a domain that was trained on, and of a third one that was
not. In a random network, a block has IN with a probability of 3/4, and the stem with one of 1/2.

`--searches 0` trains the fixed networks only: they show whether the domains reward IN at all. `--network NAME=BLOCKS`
adds a fixed network, such as `after=in_after*6`. All runs share one process. The same command resumes in a `--folder`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoreid import distributed
from autoreid.cli import run_command
from autoreid.config import Config
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.spaces.build import build_space
from autoreid.spaces.osnet_ain.genotype import OSNET_BLOCKS, OsnetAinGenotype
from autoreid.spaces.osnet_ain.supernet import BLOCKS
from benchmarks.results_folder import ResultsFolder
from benchmarks.trainings import search_genotype, train_network

ROOT = Path(__file__).resolve().parents[1]
SEARCH, TRAINING = (ROOT / "configs" / f"osnet_ain_quickstart{which}.yaml" for which in ("", "_train"))
SOURCES, SEEN, UNSEEN = ("people_a", "people_b"), "people_a", "people_c"
#: Networks with the same blocks for each seed; a network without blocks is OSNet without any IN.
FIXED: dict[str, tuple[str, ...] | None] = {
    "OSNet": None,
    "IN in the stem": ("plain",) * 6,
    "OSNet-AIN": ("in_inside", "in_inside", "plain", "in_inside", "in_inside", "plain"),
}
#: Networks that the others are compared with on the unseen domain.
BASES = ("OSNet", "IN in the stem", "random")
#: Options that determine the results.
SETTINGS = ("epochs", "search_epochs", "test_people", "shift", "overrides")
SEARCHES, TRAININGS = "searches.jsonl", "trainings.jsonl"


def recipe(path: Path, folder: Path, epochs: int | None, arguments: argparse.Namespace) -> Config:
    """Return a recipe with the data of this benchmark, for a number of epochs; None keeps the recipe's."""
    changes = [f"data.root={folder / 'data'}", f"data.targets=[{UNSEEN}, {SEEN}]", "data.workers=0"]
    for name in (*SOURCES, UNSEEN):
        people = f"data.synthetic.{name}"
        changes += [f"{people}.shift={arguments.shift}", f"{people}.test_identities={arguments.test_people}"]
    if epochs is not None:
        changes += [f"training.epochs={epochs}", f"training.warmup_epochs={min(3, epochs // 4)}"]
    # A training has no search space.
    overrides = [text for text in arguments.overrides if path == SEARCH or not text.startswith("search.")]
    config = load_config(path, changes + overrides)
    # Measured once, at the end.
    evaluation = config.evaluation.model_copy(update={"every_epochs": config.training.epochs})
    return config.model_copy(update={"evaluation": evaluation})


def search(config: Config, seed: int, world: World) -> dict[str, Any]:
    """Search once: the chosen blocks, and the share of the mixture that has IN at the end."""
    found = search_genotype(config.model_copy(update={"seed": seed}), world)
    assert isinstance(found.genotype, OsnetAinGenotype)
    line = {"search": seed, "blocks": found.genotype.blocks, "stem": found.genotype.stem}
    return line | {"in_share": in_share(found.probabilities[BLOCKS])}


def in_share(probabilities: Tensor) -> float:
    """Return the mean share of all blocks but `plain`, given the probabilities (6, O)."""
    return 1 - probabilities[:, OSNET_BLOCKS.index("plain")].mean().item()


def networks_of(
    seed: int, found: OsnetAinGenotype | None, config: Config, extra: Mapping[str, tuple[str, ...]]
) -> dict[str, OsnetAinGenotype | None]:
    """Return the genotypes of the networks to train with a seed, by name; None for OSNet without any IN.

    Args:
        found: what the search with this seed has found; None adds neither a found nor a random network.
        config: of the search, for a random network of the same space.
        extra: blocks of further networks.
    """
    networks = {
        name: None if blocks is None else OsnetAinGenotype.of_blocks(blocks)
        for name, blocks in (FIXED | dict(extra)).items()
    }
    if found is not None:
        random = build_space(config.search).random_genotype(np.random.default_rng(seed))
        assert isinstance(random, OsnetAinGenotype)
        networks |= {"found": found, "random": random}
    return networks


def train(config: Config, genotype: OsnetAinGenotype | None, seed: int, world: World) -> dict[str, float]:
    """Train a network; return its mAP on the domain that it saw and on the one that it did not see."""
    model = config.model.model_copy(update={"name": "osnet_x0_25", "options": {}})
    if genotype is not None:
        options = {**config.model.options, "genotype": str(genotype)}
        model = config.model.model_copy(update={"options": options})
    trained = train_network(config.model_copy(update={"seed": seed, "model": model}), world)
    return {"seen": trained.maps[SEEN], "unseen": trained.maps[UNSEEN], "seconds": round(trained.seconds, 1)}


def fill(folder: ResultsFolder, arguments: argparse.Namespace, world: World) -> None:
    """Do the searches and trainings that the folder lacks, seed by seed.

    Raises:
        ConfigError: the folder has a network of the same name with other blocks.
    """
    found = {line["search"]: genotype_of(line) for line in folder.read(SEARCHES)}
    done = {(line["network"], line["seed"]): genotype_of(line) for line in folder.read(TRAININGS)}
    search_config = recipe(SEARCH, folder.root, arguments.search_epochs, arguments)
    training_config = recipe(TRAINING, folder.root, arguments.epochs, arguments)
    for seed in range(max(arguments.searches, arguments.trainings)):
        if seed < arguments.searches and seed not in found:
            line = search(search_config, seed, world)
            folder.append(SEARCHES, line)
            found[seed] = genotype_of(line)
            print(f"search {seed}: {line['stem']} {' '.join(line['blocks'])}", file=sys.stderr)
        for network, genotype in networks_of(
            seed, found.get(seed), search_config, arguments.networks
        ).items():
            known = done.get((network, seed), genotype)
            if known != genotype:
                raise ConfigError(
                    f"--network {network}={_blocks(genotype)}: the results in {folder.root} are from "
                    f"{_blocks(known)}; give the network another name"
                )
            if (network, seed) not in done:
                line = {"network": network, "seed": seed}
                line |= {"blocks": genotype and genotype.blocks, "stem": genotype and genotype.stem}
                line |= train(training_config, genotype, seed, world)
                folder.append(TRAININGS, line)
                print(
                    f"{network}, seed {seed}: mAP seen {line['seen']:.1%}, unseen {line['unseen']:.1%} "
                    f"in {line['seconds']:.0f} s",
                    file=sys.stderr,
                )


def genotype_of(line: Mapping[str, Any]) -> OsnetAinGenotype | None:
    """Return the genotype of a line of results; None for OSNet without any IN."""
    return line["blocks"] and OsnetAinGenotype.of_blocks(line["blocks"], line["stem"])


def _blocks(genotype: OsnetAinGenotype | None) -> str:
    return "" if genotype is None else ",".join(genotype.blocks)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard error of the mean (None of a single value) and number of the values."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": fmean(values), "error": error, "n": len(values)}


def summary(searches: Sequence[Mapping[str, Any]], trainings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each network's mAP, and its gain over the others on the unseen domain, paired by seed."""
    by_network: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in trainings:
        by_network.setdefault(line["network"], {})[line["seed"]] = line
    report: dict[str, Any] = {"networks": {}, "searches": list(searches)}
    for network, lines in by_network.items():
        row = {key: spread([line[key] for line in lines.values()]) for key in ("seen", "unseen")}
        for base in BASES:
            others = by_network.get(base, {})
            gains = [lines[seed]["unseen"] - others[seed]["unseen"] for seed in lines if seed in others]
            if gains and network != base:
                row[f"beyond {base}"] = spread(gains)
        report["networks"][network] = row
    if searches:
        report["in_share"] = spread([line["in_share"] for line in searches])
        report["blocks_with_in"] = spread(
            [sum(block != "plain" for block in line["blocks"]) for line in searches]
        )
        report["stems_with_in"] = sum(line["stem"] == "instance_norm" for line in searches)
    return report


def show(report: dict[str, Any]) -> None:
    """Print the tables: mean ± standard error (number of searches or seeds)."""
    for line in report["searches"]:
        print(
            f"search {line['search']}: IN in {line['in_share']:.3f} of the blocks' mixture; "
            f"{line['stem']} {' '.join(line['blocks'])}"
        )
    if report["searches"]:
        print(f"share of the mixture with IN {_shown(report['in_share'], 1, 3)} (chance 0.750)")
        print(f"blocks with IN {_shown(report['blocks_with_in'], 1, 1)} of 6 (chance 4.5)")
        print(f"stems with IN: {report['stems_with_in']} of {len(report['searches'])}\n")
    columns = ("unseen", *(f"beyond {base}" for base in BASES), "seen")
    print(f"{'mAP in %':<18}" + "".join(f"{column:>24}" for column in columns))
    for network, row in report["networks"].items():
        cells = (_shown(row[column], 100, 1) if column in row else "" for column in columns)
        print(f"{network:<18}" + "".join(f"{cell:>24}" for cell in cells))


def _shown(spread_: Mapping[str, Any], factor: float, digits: int) -> str:
    error = "" if spread_["error"] is None else f" ± {factor * spread_['error']:.{digits}f}"
    return f"{factor * spread_['mean']:.{digits}f}{error} ({spread_['n']})"


def _network(text: str) -> tuple[str, tuple[str, ...]]:
    """Read NAME=BLOCK,BLOCK,... with BLOCK*N for N equal blocks."""
    name, _, rest = text.partition("=")
    blocks: list[str] = []
    for part in rest.split(","):
        block, _, count = part.partition("*")
        blocks += [block] * int(count or 1)
    if len(blocks) != 6 or not set(blocks) <= set(OSNET_BLOCKS):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME= and six of {', '.join(OSNET_BLOCKS)}")
    return name, tuple(blocks)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--searches", type=int, default=3, help="searches, with seeds 0 to N - 1 (default: 3)")
    add("--trainings", type=int, default=0, help="trainings of the fixed networks, if more than searches")
    add("--network", dest="networks", type=_network, action="append", default=[], metavar="NAME=BLOCKS")
    add("--epochs", type=int, help="epochs of a training (default: the recipe's; --shift local needs 40)")
    add("--search-epochs", type=int, help="epochs of a search (default: the recipe's)")
    add("--test-people", type=int, default=160, help="people in query and gallery of a domain (default: 160)")
    add("--shift", choices=("colour", "local"), default="colour", help="how domains differ (default: colour)")
    add("--threads", type=int, default=1, help="threads of a run (default: 1)")
    add("--quick", action="store_true", help="one search, one epoch each")
    add("--folder", type=Path, help="keep the results here (default: a temporary folder)")
    add("--json", action="store_true", help="print one JSON object")
    add(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="replace values of both recipes; those of search, of the search's only",
    )
    parsed = parser.parse_intermixed_args(arguments)
    parsed.networks = dict(parsed.networks)
    if parsed.quick:
        parsed.searches = parsed.epochs = parsed.search_epochs = 1
    return parsed


def main() -> int:
    """Do what is missing, and print."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary, distributed.setup("cpu") as world:
        root = (arguments.folder or Path(temporary)).resolve()
        folder = ResultsFolder(root, {key: getattr(arguments, key) for key in SETTINGS})
        fill(folder, arguments, world)
        report = summary(folder.read(SEARCHES), folder.read(TRAININGS))
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
