"""Variants of the quickstart's search, judged by the networks that they find.

    python -m benchmarks.search_variants --folder DIR [--variants NAME ...] [--searches S] [--json]

`DIR` is the folder of a table of `benchmarks.genotype_table`, whose recipe trains each found network once, with the
seed 0. A search has the seeds 0 to S-1. The table that is printed compares the found networks of each variant with the
table's random genotypes, also at equal size and at equal cost, and shows how far the searches of a variant agree with
each other. Larger networks are better here: "at equal size", the mAP is compared with a line that is fitted to the mAP
and the number of parameters of the random genotypes.

`DIR/variants.jsonl` has a line for each search. The same command resumes, and `--searches` may grow. Processes with
other variants can fill the same folder at the same time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoreid import distributed
from autoreid.cli import run_command
from autoreid.config import Config
from autoreid.distributed import World
from autoreid.recipes import load_config
from autoreid.spaces.genotype import Genotype
from autoreid.spaces.reid_cell.genotype import CellGenotype, Edge
from autoreid.trials.equal_cost import at_equal_cost, cost_curve
from autoreid.trials.statistics import permutation_p, standard_error
from benchmarks import genotype_table
from benchmarks.genotype_table import Row, open_table, random_means, read_table, standing, train_genotype
from benchmarks.results_folder import ResultsFolder
from benchmarks.trainings import search_genotype

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
RESULTS = "variants.jsonl"
#: The training's seed: with it, the table's trainings are compared.
SEED = 0
_OLD_OPERATIONS = "[none,max_pool_3x3,avg_pool_3x3,skip_connect,sep_conv_3x3,dil_conv_3x3,part_aware]"
_EPOCHS = "training.epochs"
_IDENTITIES = (
    "search.alphas_see=identities",
    "search.losses={classification_weight: 0.0, mine_across_ranks: true}",
)
#: Overrides of `configs/quickstart.yaml`.
VARIANTS: dict[str, tuple[str, ...]] = {
    "shipped": (),
    "raw": ("losses.normalise=false",),
    "part_aware": (f"search.reid_cell.operations={_OLD_OPERATIONS}",),
    "before": ("losses.normalise=false", f"search.reid_cell.operations={_OLD_OPERATIONS}"),
    "identities": _IDENTITIES,
    "identities_long": (*_IDENTITIES, f"{_EPOCHS}=16"),
    "long": (f"{_EPOCHS}=16",),
    "longest": (f"{_EPOCHS}=48",),
    "second": ("search.order=second",),
    "fast": ("search.alpha_learning_rate=0.06", "search.alpha_schedule=cosine"),
    "drnas": ("search.relaxation=drnas",),
    "sdarts": ("search.relaxation=sdarts",),
    "gdas": ("search.relaxation=gdas",),
    "perturbation": ("search.read_out=perturbation",),
    "one_shot": ("search.relaxation=fair", "search.level=single", "search.read_out=one_shot"),
}


def recipe(folder: Path, variant: str, seed: int) -> Config:
    """Return the config of a search, on the images of the table's trainings and measured at its end."""
    config = load_config(RECIPE, [f"data.root={folder / 'data'}", f"seed={seed}", *VARIANTS[variant]])
    people = config.data.synthetic["synthetic_people"]
    test_people = json.loads((folder / "settings.json").read_text())["test_people"]
    synthetic = {"synthetic_people": people.model_copy(update={"test_identities": test_people})}
    data = config.data.model_copy(update={"synthetic": synthetic})
    evaluation = config.evaluation.model_copy(update={"every_epochs": config.training.epochs})
    return config.model_copy(update={"data": data, "evaluation": evaluation})


def fill(
    folder: ResultsFolder, variants: Sequence[str], searches: int, training: Config, world: World
) -> None:
    """Search and train what the folder lacks, and append a line after each search.

    All variants are searched with the first seed before any with the second.
    """
    done = {(line["variant"], line["search"]) for line in folder.read(RESULTS)}
    for seed, variant in itertools.product(range(searches), variants):
        if (variant, seed) in done:
            continue
        found = search_genotype(recipe(folder.root, variant, seed), world)
        trained = train_genotype(found.genotype, SEED, training, world)
        line = {
            "variant": variant,
            "search": seed,
            "genotype": str(found.genotype),
            "map": trained.map,
            "parameters": trained.parameters,
            "undecided": found.undecided,
            "search_seconds": round(found.seconds, 1),
            "probabilities": {name: rounded(values) for name, values in found.probabilities.items()},
        }
        folder.append(RESULTS, line)
        print(f"{variant} {seed}: mAP {trained.map:.1%}, search {found.seconds:.0f} s", file=sys.stderr)


def rounded(values: Tensor) -> list[list[float]]:
    """Return probabilities (E, O) with four decimals."""
    return [[round(value, 4) for value in row] for row in values.tolist()]


def shared_edges(genotypes: Sequence[Genotype]) -> dict[str, float]:
    """Return for each kind of cell how many edges two of the genotypes share, the mean over all pairs.

    An edge is shared if it joins the same nodes by the same operation.
    """

    def edges(genotype: Genotype, kind: str) -> set[tuple[int, Edge]]:
        return {(node, edge) for node, pair in enumerate(getattr(genotype, kind)) for edge in pair}

    pairs = list(itertools.combinations(genotypes, 2))
    return {
        kind: fmean(len(edges(one, kind) & edges(other, kind)) for one, other in pairs)
        for kind in ("normal", "reduce")
    }


def correlations(searches: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return for each kind of cell the correlation of the probabilities of two searches, the mean over all pairs."""
    found = {}
    for kind in ("normal", "reduce"):
        tables = [np.ravel(search["probabilities"][kind]) for search in searches]
        pairs = itertools.combinations(tables, 2)
        found[kind] = float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs]))
    return found


def beyond_size(
    maps: Sequence[float], parameters: Sequence[int], line: np.polynomial.Polynomial
) -> list[float]:
    """Return how far each mAP is above the line at the network's number of parameters."""
    return (np.array(maps) - line(np.array(parameters, dtype=float))).tolist()


def summary(lines: Sequence[Mapping[str, Any]], table: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row for each variant of which there are two or more searches, in the order of their definition."""
    by_genotype = random_means(table, [SEED])
    randoms = list(by_genotype.values())
    sizes = {row.genotype: row.parameters for row in table}
    random_sizes = [sizes[genotype] for genotype in by_genotype]
    line = np.polynomial.Polynomial.fit(random_sizes, randoms, 1)
    random_beyond = beyond_size(randoms, random_sizes, line)
    seconds = fmean(row.seconds for row in table)
    random_curve = cost_curve(randoms, [seconds] * len(randoms))
    rows = []
    for variant in VARIANTS:
        own = [one for one in lines if one["variant"] == variant]
        if len(own) < 2:
            continue
        maps = [one["map"] for one in own]
        beyond = beyond_size(maps, [one["parameters"] for one in own], line)
        genotypes = [CellGenotype.parse(one["genotype"], RESULTS) for one in own]
        learned = all(one["undecided"] is not None for one in own)
        curve = cost_curve(maps, [one["search_seconds"] + seconds for one in own])
        equal = at_equal_cost(curve, random_curve)
        rows.append(
            {
                "variant": variant,
                "searches": len(own),
                "map": fmean(maps),
                "lowest": min(maps),
                "highest": max(maps),
                "difference": fmean(maps) - fmean(randoms),
                "error": standard_error(maps, randoms),
                "p": permutation_p(maps, randoms),
                "difference_at_equal_size": fmean(beyond),
                "error_at_equal_size": standard_error(beyond, random_beyond),
                "p_at_equal_size": permutation_p(beyond, random_beyond),
                "median_above": standing(median(maps), table, [SEED]).below,
                "shared": shared_edges(genotypes),
                "correlation": correlations(own) if learned else None,
                "undecided": fmean(one["undecided"] for one in own) if learned else None,
                "parameters": fmean(one["parameters"] for one in own),
                "search_seconds": fmean(one["search_seconds"] for one in own),
                "equal_cost": equal and [curve[equal[0] - 1][1], random_curve[equal[1] - 1][1], *equal],
            }
        )
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a line for each variant."""
    print(
        f"{'variant':<16}{'n':>2}{'mAP':>7}{'lowest to highest':>19}{'difference, p':>21}{'at equal size, p':>21}"
        f"{'parameters':>12}{'median above':>14}{'shared edges':>14}{'correlation':>14}{'undecided':>11}{'search':>8}"
        f"  best at equal cost, found and random"
    )
    for row in rows:
        equal_size = [row[f"{key}_at_equal_size"] for key in ("difference", "error", "p")]
        print(
            f"{row['variant']:<16}{row['searches']:>2}{row['map']:>7.1%}"
            f"{row['lowest']:>11.1%} - {row['highest']:.1%}"
            f"{_difference(row['difference'], row['error'], row['p']):>21}{_difference(*equal_size):>21}"
            f"{row['parameters']:>12,.0f}{row['median_above']:>14.0%}"
            f"{_pair(row['shared'], 1):>14}{_pair(row['correlation'], 2):>14}"
            f"{'-' if row['undecided'] is None else format(row['undecided'], '.1f'):>11}"
            f"{row['search_seconds']:>6.0f} s  {_equal_cost(row['equal_cost'])}"
        )


def _difference(mean: float, error: float, p: float) -> str:
    return f"{100 * mean:+.1f} ± {100 * error:.1f}, {p:.4f}"


def _pair(of_cells: Mapping[str, float] | None, digits: int) -> str:
    return "-" if of_cells is None else " / ".join(f"{value:.{digits}f}" for value in of_cells.values())


def _equal_cost(equal: Sequence[float] | None) -> str:
    if equal is None:
        return "-"
    found, random, num_found, num_random = equal
    return f"{found:.1%} of {num_found}, {random:.1%} of {num_random}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="folder of a table of genotypes")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    add("--searches", type=int, default=8, help="searches of each variant; 0 only prints (default: 8)")
    add("--threads", type=int, default=1, help="threads of a search or training (default: 1)")
    add("--json", action="store_true", help="print a JSON object for each variant")
    return parser.parse_args(arguments)


def main() -> int:
    """Search and train what is missing, and print."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    folder, settings = open_table(arguments.folder)
    with distributed.setup("cpu") as world:
        training = genotype_table.recipe(folder.root, settings)
        fill(folder, arguments.variants, arguments.searches, training, world)
    rows = summary(folder.read(RESULTS), read_table(folder))
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
    else:
        show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
