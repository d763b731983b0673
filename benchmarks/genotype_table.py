"""A table of genotypes of the quickstart's space and the mAP of each after a training of its own network.

    python -m benchmarks.genotype_table --folder DIR [--genotypes N] [--seeds M] [--rank GENOTYPE ...] [--json]

Random genotypes, and extreme ones of a single operation, are trained by `configs/quickstart_train.yaml`, a few epochs
each and once for each seed, and measured on 160 test people. The table shows how good a found genotype is: `--rank`
trains it by the same recipe and says what share of the random genotypes has a lower mAP. Nothing is matched, neither
size nor operations, and a genotype's nearest neighbour in the table says nothing about it: a found genotype has to be
trained.

`DIR/table.jsonl` has a line for each training. All genotypes are trained with the first seed before any with the
second, so that a part of the table is a fair sample as well. The same command resumes, and `--genotypes` and `--seeds`
may grow. Processes with different values of `--only-seed` can fill one table at the same time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch

from autoreid import distributed
from autoreid.cli import run_command
from autoreid.config import DEFAULT_CELL_OPERATIONS, Config
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.recipes import load_config
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge, random_genotype
from autoreid.trials.genotypes import read_found
from benchmarks.results_folder import ResultsFolder
from benchmarks.trainings import Trained, train_network

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "quickstart_train.yaml"
#: Kinds of rows: only the random genotypes are a sample of the space.
RANDOM, EXTREME, RANKED = "random", "extreme", "ranked"
#: Options that determine the results of a table.
SETTINGS = ("seed", "epochs", "height", "width", "test_people")
TABLE = "table.jsonl"
QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Row:
    """A training of the table: a genotype's stable text, the training's seed and the result."""

    kind: str
    name: str
    genotype: str
    seed: int
    map: float
    parameters: int
    seconds: float


class Standing(NamedTuple):
    """How a mAP stands among those of the table's random genotypes.

    Attributes:
        below: fraction of the random genotypes with a lower mAP; equal ones count half.
        genotypes: number of random genotypes that it was compared with.
    """

    below: float
    genotypes: int


def extreme_genotypes(nodes: int = 4) -> Iterator[tuple[str, CellGenotype]]:
    """Yield genotypes with a single operation, each node fed by the two before it, by the operation's name."""
    for operation in (*DEFAULT_CELL_OPERATIONS[1:], "part_aware"):
        cell = tuple((Edge(operation, node), Edge(operation, node + 1)) for node in range(nodes))
        yield operation, CellGenotype(normal=cell, reduce=cell)


def genotypes_of_table(count: int, seed: int) -> list[tuple[str, str, CellGenotype]]:
    """Return kind, name and genotype of `count` random genotypes and of the extreme ones.

    A larger count only adds genotypes.
    """
    rng = np.random.default_rng(seed)
    randoms = [(RANDOM, str(number), random_genotype(rng)) for number in range(count)]
    return randoms + [(EXTREME, name, genotype) for name, genotype in extreme_genotypes()]


def open_table(folder: Path) -> tuple[ResultsFolder, argparse.Namespace]:
    """Open the folder of a table that exists, to add other results.

    Returns:
        The folder, and the settings of the table's trainings.

    Raises:
        ConfigError: there is no table.
    """
    root = folder.resolve()
    if not (root / TABLE).exists():
        raise ConfigError(f"--folder {root}: no {TABLE} there; make it by genotype_table.py")
    settings = json.loads((root / "settings.json").read_text())
    return ResultsFolder(root, settings), argparse.Namespace(**settings)


def read_table(folder: ResultsFolder) -> list[Row]:
    """Return the rows of a table, in the order of their trainings."""
    return [Row(**line) for line in folder.read(TABLE)]


def means(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, float]:
    """Return the mean mAP of each genotype that was trained with all of the seeds, by its text."""
    maps: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        maps[row.genotype][row.seed] = row.map
    return {
        genotype: fmean(of[seed] for seed in seeds) for genotype, of in maps.items() if set(seeds) <= set(of)
    }


def random_means(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, float]:
    """Return the mean mAP of each random genotype that was trained with all of the seeds, by its text.

    Raises:
        ConfigError: there is none.
    """
    randoms = means([row for row in rows if row.kind == RANDOM], seeds)
    if not randoms:
        raise ConfigError(f"--seeds: no random genotype of the table was trained with all of {list(seeds)}")
    return randoms


def standing(value: float, rows: Sequence[Row], seeds: Sequence[int]) -> Standing:
    """Compare a genotype's mean mAP over the seeds with the means of the table's random genotypes.

    Raises:
        ConfigError: no random genotype was trained with all of the seeds.
    """
    others = list(random_means(rows, seeds).values())
    lower = sum((other < value) + 0.5 * (other == value) for other in others)
    return Standing(lower / len(others), len(others))


def recipe(folder: Path, arguments: argparse.Namespace) -> Config:
    """Return the config of all trainings, but for genotype and seed."""
    epochs = f"epochs={arguments.epochs}"
    return load_config(
        RECIPE,
        [
            f"data.root={folder / 'data'}",
            f"data.synthetic.synthetic_people.test_identities={arguments.test_people}",
            f"data.height={arguments.height}",
            f"data.width={arguments.width}",
            f"training.{epochs}",
            f"evaluation.every_{epochs}",
        ],
    )


def fill(
    folder: ResultsFolder,
    wanted: Sequence[tuple[str, str, Genotype]],
    seeds: Sequence[int],
    config: Config,
    world: World,
) -> None:
    """Train what the table lacks, seed by seed, and append a row after each training."""
    done = {(row.genotype, row.seed) for row in read_table(folder)}
    for seed in seeds:
        for kind, name, genotype in wanted:
            if (str(genotype), seed) not in done:
                trained = train_genotype(genotype, seed, config, world)
                seconds = round(trained.seconds, 1)
                row = Row(kind, name, str(genotype), seed, trained.map, trained.parameters, seconds)
                folder.append(TABLE, asdict(row))
                print(
                    f"{kind} {name}, seed {seed}: mAP {row.map:.1%} in {row.seconds:.0f} s", file=sys.stderr
                )


def train_genotype(genotype: Genotype, seed: int, config: Config, world: World) -> Trained:
    """Train the network of a genotype to the end by the table's recipe, and measure it."""
    options = {**config.model.options, "genotype": str(genotype)}
    model = config.model.model_copy(update={"options": options})
    return train_network(config.model_copy(update={"seed": seed, "model": model}), world)


def summary(rows: Sequence[Row], seeds: Sequence[int]) -> dict[str, Any]:
    """Return size and spread of the table, and each genotype that is not a random one with its standing."""
    randoms = random_means(rows, seeds)
    kinds = {row.genotype: (row.kind, row.name) for row in rows}
    others = []
    for genotype, value in means(rows, seeds).items():
        kind, name = kinds[genotype]
        if kind != RANDOM:
            below = standing(value, rows, seeds).below
            others.append({"kind": kind, "name": name, "map": value, "below": below})
    return {
        "genotypes": len(randoms),
        "seeds": len(seeds),
        "seconds": fmean(row.seconds for row in rows),
        "mean": fmean(randoms.values()),
        "deviation": stdev(randoms.values()) if len(randoms) > 1 else 0.0,
        "quantiles": dict(
            zip(QUANTILES, np.quantile(list(randoms.values()), QUANTILES).tolist(), strict=True)
        ),
        "others": others,
    }


def show(report: dict[str, Any]) -> None:
    """Print the summary."""
    print(f"{report['genotypes']} random genotypes, {report['seeds']} trainings each")
    print(f"mAP {report['mean']:.1%} ± {report['deviation']:.1%} between genotypes")
    print("quantiles " + ", ".join(f"{at:.0%}: {value:.1%}" for at, value in report["quantiles"].items()))
    for other in report["others"]:
        label = f"{other['kind']} {other['name']}"
        print(f"{label:<40}{other['map']:>8.1%}, above {other['below']:.0%} of the random genotypes")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="folder of the table and its images")
    add("--genotypes", type=int, default=150, help="random genotypes (default: 150)")
    add("--seeds", type=int, default=2, help="trainings of each genotype (default: 2)")
    add("--only-seed", type=int, metavar="S", help="train with this seed only, instead of 0 to M - 1")
    add("--seed", type=int, default=0, help="seed of the random genotypes (default: 0)")
    add(
        "--rank",
        type=Path,
        nargs="+",
        default=[],
        metavar="GENOTYPE",
        help="genotype files, or run folders of searches, to rank as well",
    )
    add("--epochs", type=int, default=6, help="epochs of a training (default: 6)")
    add("--height", type=int, default=96, help="image height (default: 96)")
    add("--width", type=int, default=48, help="image width (default: 48)")
    add("--test-people", type=int, default=160, help="people in query and gallery (default: 160)")
    add("--threads", type=int, default=1, help="threads of a training (default: 1)")
    add("--quick", action="store_true", help="three genotypes, one seed, one epoch")
    add("--json", action="store_true", help="print one JSON object")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.genotypes, parsed.seeds, parsed.epochs = 3, 1, 1
    for name in ("genotypes", "seeds"):
        if getattr(parsed, name) < 1:
            raise ConfigError(f"command line: --{name} {getattr(parsed, name)}: must be at least 1")
    return parsed


def main() -> int:
    """Train what is missing, and print."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    seeds = range(arguments.seeds) if arguments.only_seed is None else [arguments.only_seed]
    wanted: list[tuple[str, str, Genotype]] = [*genotypes_of_table(arguments.genotypes, arguments.seed)]
    wanted += [(RANKED, str(path), read_found(path).genotype) for path in arguments.rank]
    folder = ResultsFolder(arguments.folder.resolve(), {key: getattr(arguments, key) for key in SETTINGS})
    with distributed.setup("cpu") as world:
        fill(folder, wanted, seeds, recipe(folder.root, arguments), world)
    report = summary(read_table(folder), seeds)
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
