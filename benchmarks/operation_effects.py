"""What makes a genotype of the quickstart's space good: which operations it has, where they are, or its size.

    python -m benchmarks.operation_effects --folder DIR [--json]

`DIR` is the folder of a table of `benchmarks.genotype_table`. The mAP of its random genotypes, averaged over the seeds
that all of them were trained with, is predicted by linear models from

* the number of each operation in the normal and in the reduction cell;
* the number of each operation at each node of the two cells;
* the network's number of parameters.

Each genotype is predicted by a model that is fitted to all others. The share of the variance that a model explains in
this way can be compared with the share that is not noise, which is known if there are several trainings for each
genotype. The table of effects has the change of mAP if a `skip_connect` of a cell is replaced by another operation.

If the folder has results of `benchmarks.search_variants`, the searches are compared with these effects: by the
correlation, over the operations of a cell, of the effects and of the probabilities, averaged over the cell's edges.

No network is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoreid.cli import run_command
from autoreid.config import DEFAULT_CELL_OPERATIONS
from autoreid.errors import ConfigError
from autoreid.spaces.reid_cell.genotype import CellGenotype
from benchmarks.genotype_table import RANDOM, TABLE, Row, open_table, read_table
from benchmarks.search_variants import RESULTS as SEARCHES

CELLS = ("normal", "reduce")
#: The operation that the others are compared with: the numbers of all operations of a cell have a fixed sum.
REFERENCE = "skip_connect"
OPERATIONS = tuple(name for name in DEFAULT_CELL_OPERATIONS if name not in ("none", REFERENCE))
#: Strengths of the ridge regression; the best one counts, for each model.
RIDGES = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
FloatArray = npt.NDArray[np.float64]


class Effect(NamedTuple):
    """The change of mAP if a `skip_connect` of a cell is replaced by an operation, with its standard error."""

    cell: str
    operation: str
    change: float
    error: float


def maps_of(rows: Sequence[Row]) -> tuple[list[CellGenotype], FloatArray, FloatArray]:
    """Return the random genotypes, their mAPs (N, S) with the seeds that all have, and their parameters (N,).

    Raises:
        ConfigError: there are too few genotypes for the models.
    """
    maps: dict[str, dict[int, float]] = defaultdict(dict)
    sizes = {}
    for row in rows:
        if row.kind == RANDOM:
            maps[row.genotype][row.seed] = row.map
            sizes[row.genotype] = float(row.parameters)
    complete = [genotype for genotype in maps if 0 in maps[genotype]]
    if len(complete) < 30:
        raise ConfigError(
            f"--folder: {TABLE} has {len(complete)} random genotypes with seed 0; at least 30 are needed"
        )
    genotypes = []
    for text in complete:
        genotype = CellGenotype.parse(text, TABLE)
        assert isinstance(genotype, CellGenotype)  # a table has genotypes of the quickstart's space
        genotypes.append(genotype)
    seeds = set.intersection(*(set(maps[genotype]) for genotype in complete))
    return (
        genotypes,
        np.array([[maps[genotype][seed] for seed in sorted(seeds)] for genotype in complete]),
        np.array([sizes[genotype] for genotype in complete]),
    )


def numbers(genotype: CellGenotype) -> list[int]:
    """Return the number of each operation in the normal and in the reduction cell."""
    return [
        sum(edge.operation == operation for node in getattr(genotype, cell) for edge in node)
        for cell in CELLS
        for operation in OPERATIONS
    ]


def numbers_at_nodes(genotype: CellGenotype) -> list[int]:
    """Return the number of each operation at each node of both cells."""
    return [
        sum(edge.operation == operation for edge in node)
        for cell in CELLS
        for node in getattr(genotype, cell)
        for operation in OPERATIONS
    ]


def explained(features: FloatArray, values: FloatArray) -> float:
    """Return the share of the variance of the values (N,) that linear models of the features (N, F) explain.

    Each value is predicted from all others (leave one out, computed from the hat matrix), by ridge regression with
    the best of a few strengths.
    """
    centred = (features - features.mean(0)) / np.maximum(features.std(0), 1e-12)
    design = np.column_stack([np.ones(len(values)), centred])
    penalty = np.eye(design.shape[1])
    penalty[0, 0] = 0.0  # not on the mean
    shares = []
    for ridge in RIDGES:
        hat = design @ np.linalg.pinv(design.T @ design + ridge * penalty) @ design.T
        left = (values - hat @ values) / (1 - np.diag(hat))
        shares.append(1 - np.sum(left**2) / np.sum((values - values.mean()) ** 2))
    return float(max(shares))


def reproducible(maps: FloatArray) -> float | None:
    """Return the share of the variance of the genotypes' means that is not noise; None for a single training of each.

    It is the best that a model could explain: one minus the variance of a mean over the trainings (N, S) of the same
    genotype, divided by the variance of the means.
    """
    if maps.shape[1] < 2:
        return None
    noise = maps.var(1, ddof=1).mean() / maps.shape[1]
    return float(1 - noise / maps.mean(1).var(ddof=1))


def effects(genotypes: Sequence[CellGenotype], values: FloatArray) -> list[Effect]:
    """Return the effect of each operation in each cell, by least squares."""
    design = np.column_stack([np.ones(len(values)), [numbers(genotype) for genotype in genotypes]])
    covariance = np.linalg.pinv(design.T @ design)
    coefficients = covariance @ design.T @ values
    left = values - design @ coefficients
    errors = np.sqrt(np.diag(covariance) * (left @ left) / (len(values) - design.shape[1]))
    names = [(cell, operation) for cell in CELLS for operation in OPERATIONS]
    return [
        Effect(*name, float(change), float(error))
        for name, change, error in zip(names, coefficients[1:], errors[1:], strict=True)
    ]


def agreement(
    searches: Sequence[Mapping[str, Any]], of_operations: Sequence[Effect]
) -> dict[str, dict[str, list[float]]]:
    """Return for each variant and cell how the probabilities of each search correlate with the effects.

    Searches whose operations are others, or that learn no probabilities, are left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for search in searches:
        if search["undecided"] is None or "part_aware" in search["genotype"]:
            continue
        for cell in CELLS:
            # The candidates are none and the default operations, in their order.
            means = np.mean(search["probabilities"][cell], 0)
            probabilities = dict(zip(DEFAULT_CELL_OPERATIONS, means, strict=True))
            changes = {one.operation: one.change for one in of_operations if one.cell == cell} | {
                REFERENCE: 0.0
            }
            pairs = np.array([(change, probabilities[name]) for name, change in changes.items()])
            of_variant = found.setdefault(search["variant"], {name: [] for name in CELLS})
            of_variant[cell].append(float(np.corrcoef(pairs.T)[0, 1]))
    return found


def summary(rows: Sequence[Row], searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the shares of the variance that the models explain, the effects of the operations, and the agreement."""
    genotypes, maps, sizes = maps_of(rows)
    values = maps.mean(1)
    counts = np.array([numbers(genotype) for genotype in genotypes], dtype=float)
    of_operations = effects(genotypes, values)
    at_nodes = np.array([numbers_at_nodes(genotype) for genotype in genotypes], dtype=float)
    return {
        "genotypes": len(genotypes),
        "seeds": maps.shape[1],
        "deviation": float(values.std(ddof=1)),
        "reproducible": reproducible(maps),
        "explained": {
            "operations of both cells": explained(counts, values),
            "operations of the normal cell": explained(counts[:, : len(OPERATIONS)], values),
            "operations of the reduction cell": explained(counts[:, len(OPERATIONS) :], values),
            "operations of each node": explained(at_nodes, values),
            "parameters": explained(sizes[:, None], values),
        },
        "effects": [effect._asdict() for effect in of_operations],
        "agreement": agreement(searches, of_operations),
    }


def show(report: Mapping[str, Any]) -> None:
    """Print the summary."""
    print(
        f"{report['genotypes']} random genotypes, {report['seeds']} trainings each: "
        f"standard deviation {100 * report['deviation']:.1f} points"
    )
    if report["reproducible"] is not None:
        print(f"{'not noise':<34}{report['reproducible']:.0%} of the variance")
    for model, share in report["explained"].items():
        print(f"{model:<34}{share:.0%} of the variance explained")
    print(f"{'points of mAP per operation':<34}{'normal cell':>14}{'reduction cell':>16}")
    of_pairs = {(effect["cell"], effect["operation"]): effect for effect in report["effects"]}
    for operation in OPERATIONS:
        pair = [of_pairs[cell, operation] for cell in CELLS]
        texts = [f"{100 * effect['change']:+.1f} ± {100 * effect['error']:.1f}" for effect in pair]
        print(f"{operation:<34}{texts[0]:>14}{texts[1]:>16}")
    for variant, of_cells in report["agreement"].items():
        texts = [f"{fmean(of_cells[cell]):.2f}" for cell in CELLS]
        label = f"correlation with {len(of_cells[CELLS[0]])} searches, {variant}"
        print(f"{label:<34}{texts[0]:>14}{texts[1]:>16}")


def main() -> int:
    """Read the table and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder of a table of genotypes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    folder, _ = open_table(arguments.folder)
    report = summary(read_table(folder), folder.read(SEARCHES))
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
