"""Are found networks better than random ones? Compares several searches with random genotypes, trained equally.

    python benchmarks/found_vs_random.py [--quick] [--folder DIR] [--json]

The quickstart's search runs once for each seed. The found genotypes, and random genotypes of about the size of the
first one, are then trained with the quickstart's recipe and evaluated on the test people. Random genotypes are the
baseline for a search (Li and Talwalkar, arXiv 1902.07638). Finished runs in the folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "configs" / "quickstart_train.yaml"


def command(folder: Path, module: str, *arguments: str | Path) -> None:
    """Run a command of the package in a folder, with its output on stderr."""
    line = [sys.executable, "-m", f"autoreid.{module}", *map(str, arguments)]
    subprocess.run(line, cwd=folder, check=True, stdout=sys.stderr)


def result(folder: Path, name: str) -> dict[str, float]:
    """Return mAP, rank-1 and number of parameters of a finished training."""
    content = json.loads((folder / "runs" / name / "result.json").read_text())
    return {"map": content["map"], "rank1": content["cmc"]["1"], "parameters": content["parameters"]}


def train(
    folder: Path, name: str, genotype_of: list[str], seeds: int, overrides: list[str]
) -> list[dict[str, float]]:
    """Derive a network, train it once for each seed, and return the results."""
    results = []
    for seed in range(seeds):
        run = f"{name}-seed{seed}"
        command(folder, "derive", *genotype_of, "--config", TRAINING, "--output", Path("derived") / run)
        command(
            folder, "train", "--config", Path("derived") / run / "config.yaml", f"seed={seed}", *overrides
        )
        results.append(result(folder, run))
    return results


def describe(results: list[dict[str, float]]) -> dict[str, float]:
    """Return statistics of the mAP over trainings, and the mean rank-1 and number of parameters."""
    maps = sorted(one["map"] for one in results)
    return {
        "trainings": len(maps),
        "median_map": statistics.median(maps),
        "mean_map": statistics.fmean(maps),
        "deviation": statistics.stdev(maps) if len(maps) > 1 else 0.0,
        "lowest": maps[0],
        "highest": maps[-1],
        "rank1": statistics.fmean(one["rank1"] for one in results),
        "parameters": statistics.fmean(one["parameters"] for one in results),
    }


def study(folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Do all runs, and return a row for each kind of network."""
    epochs = [f"training.epochs={arguments.epochs}", f"evaluation.every_epochs={arguments.epochs}"]
    search = [
        f"training.epochs={arguments.search_epochs}",
        f"evaluation.every_epochs={arguments.search_epochs}",
    ]
    rows: dict[str, list[dict[str, float]]] = {"found": [], "random": []}
    for seed in range(arguments.searches):
        name = f"search{seed}"
        recipe = ROOT / "configs" / "quickstart.yaml"
        command(folder, "train", "--config", recipe, f"task_name={name}", f"seed={seed}", *search)
        rows["found"] += train(folder, f"found{seed}", [f"runs/{name}"], arguments.seeds, epochs)
    for number in range(arguments.random):
        genotype = ["runs/search0", "--random", str(number)]
        rows["random"] += train(folder, f"random{number}", genotype, arguments.seeds, epochs)
    return {name: describe(results) for name, results in rows.items()}


def main() -> None:
    """Do the runs that are missing, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--searches", type=int, default=3, help="number of searches (default: 3)")
    parser.add_argument("--random", type=int, default=8, help="number of random genotypes (default: 8)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each network (default: 2)")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a training (default: 6)")
    parser.add_argument("--search-epochs", type=int, default=8, help="epochs of a search (default: 8)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one search of three epochs, one random genotype, trainings of one epoch",
    )
    parser.add_argument("--folder", type=Path, help="keep the runs here (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.searches = arguments.random = arguments.seeds = arguments.epochs = 1
        arguments.search_epochs = 3
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = study(folder, arguments)
    if arguments.json:
        print(json.dumps(rows))
        return
    columns = list(rows["found"])
    print(f"{'':<8}" + "".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<8}" + "".join(f"{value:>12.4g}" for value in row.values()))


if __name__ == "__main__":
    main()
