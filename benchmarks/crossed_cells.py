"""How much of a network's mAP depends on its normal cell, and how much on its reduction cell.

    python -m benchmarks.crossed_cells --folder DIR [--cells N] [--json]

`DIR` is the folder of a table of `benchmarks.genotype_table`. Each of N random normal cells is combined with each of N
random reduction cells, and the N * N networks are trained once each by the table's recipe. A two-way analysis of
variance divides the differences of their mAPs: those between normal cells, those between reduction cells, and the rest,
which is the noise of a training and what is particular to a combination. If the normal cells hardly differ, no search
can choose a good one.

`DIR/crossed_cells.jsonl` has a line for each training. The same command resumes, and `--cells` may grow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from autoreid import distributed
from autoreid.cli import run_command
from autoreid.config import Config
from autoreid.distributed import World
from autoreid.errors import ConfigError
from autoreid.spaces.reid_cell.genotype import CellGenotype, random_genotype
from benchmarks import genotype_table
from benchmarks.genotype_table import open_table, train_genotype
from benchmarks.results_folder import ResultsFolder

RESULTS = "crossed_cells.jsonl"
#: The training's seed.
SEED = 0
_PERMUTATIONS = 20_000
FloatArray = npt.NDArray[np.float64]


class Effect(NamedTuple):
    """The differences between the cells of one kind.

    Attributes:
        deviation: standard deviation between the cells, without the part that the rest of the differences explains;
            0 if they explain all of it.
        p: probability of means that differ as much if the cells do not matter, by permutation.
        size_correlation: correlation of a cell's mean mAP and its networks' mean number of parameters.
    """

    deviation: float
    p: float
    size_correlation: float


def fill(folder: ResultsFolder, cells: int, config: Config, world: World) -> None:
    """Train the combinations that the folder lacks, and append a line after each training."""
    rng = np.random.default_rng(SEED)
    genotypes = [random_genotype(rng) for _ in range(cells)]
    done = {(line["normal"], line["reduce"]) for line in folder.read(RESULTS)}
    # In squares that grow, so that what exists is always crossed as far as possible.
    for normal, reduce in sorted(itertools.product(range(cells), repeat=2), key=max):
        if (normal, reduce) in done:
            continue
        genotype = CellGenotype(normal=genotypes[normal].normal, reduce=genotypes[reduce].reduce)
        trained = train_genotype(genotype, SEED, config, world)
        folder.append(
            RESULTS,
            {"normal": normal, "reduce": reduce, "map": trained.map, "parameters": trained.parameters},
        )
        print(f"normal {normal}, reduction {reduce}: mAP {trained.map:.1%}", file=sys.stderr)


def crossed(lines: Sequence[Mapping[str, Any]], key: str) -> FloatArray:
    """Return a value of all combinations of the first N cells, (N, N): a row for each normal cell.

    N is the largest number of cells of which all combinations were trained.
    """
    values = {(line["normal"], line["reduce"]): float(line[key]) for line in lines}
    cells = 0
    while all(pair in values for pair in itertools.product(range(cells + 1), repeat=2)):
        cells += 1
    return np.array([[values[row, column] for column in range(cells)] for row in range(cells)])


def effect(maps: FloatArray, parameters: FloatArray) -> Effect:
    """Return the effect of the rows' cells on the mAP, (N, N)."""
    cells = len(maps)
    rows = maps.mean(1)
    between = cells * rows.var(ddof=1)
    component = (between - rest(maps) ** 2) / cells
    # If the rows do not matter, the values of a column may be in any order.
    shuffled = np.random.default_rng(0).permuted(np.repeat(maps[None], _PERMUTATIONS, 0), axis=1)
    extreme = int(np.sum(shuffled.mean(2).var(1) >= rows.var() * (1 - 1e-9)))
    return Effect(
        float(np.sqrt(max(component, 0.0))),
        (extreme + 1) / (_PERMUTATIONS + 1),
        float(np.corrcoef(rows, parameters.mean(1))[0, 1]),
    )


def rest(maps: FloatArray) -> float:
    """Return the standard deviation of what neither the row's nor the column's mean explains, of (N, N)."""
    left = maps - maps.mean(1, keepdims=True) - maps.mean(0, keepdims=True) + maps.mean()
    return float(np.sqrt(np.sum(left**2) / (len(maps) - 1) ** 2))


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the effects of both kinds of cells, and the standard deviation of the rest.

    Raises:
        ConfigError: fewer than two cells were crossed.
    """
    maps, parameters = crossed(lines, "map"), crossed(lines, "parameters")
    if len(maps) < 2:
        raise ConfigError("--cells: at least two cells of each kind have to be crossed")
    return {
        "cells": len(maps),
        "mean": float(maps.mean()),
        "normal": effect(maps, parameters)._asdict(),
        "reduce": effect(maps.T, parameters.T)._asdict(),
        "rest": rest(maps),
    }


def show(report: Mapping[str, Any]) -> None:
    """Print the summary."""
    cells = report["cells"]
    print(f"{cells} normal and {cells} reduction cells, {cells**2} networks: mAP {report['mean']:.1%}")
    for kind in ("normal", "reduce"):
        of_kind = report[kind]
        print(
            f"{kind:<8} standard deviation between cells {100 * of_kind['deviation']:.1f} points, "
            f"p {of_kind['p']:.5f}, correlation with size {of_kind['size_correlation']:.2f}"
        )
    print(f"{'rest':<8} standard deviation {100 * report['rest']:.1f} points")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="folder of a table of genotypes")
    add("--cells", type=int, default=8, help="cells of each kind; 0 only prints (default: 8)")
    add("--threads", type=int, default=1, help="threads of a training (default: 1)")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


def main() -> int:
    """Train what is missing, and print."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    folder, settings = open_table(arguments.folder)
    with distributed.setup("cpu") as world:
        fill(folder, arguments.cells, genotype_table.recipe(folder.root, settings), world)
    report = summary(folder.read(RESULTS))
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
