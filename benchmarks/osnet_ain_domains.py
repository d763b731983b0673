"""Does the search for instance norm (IN) find networks that are better on an unseen domain?

    python benchmarks/osnet_ain_domains.py [--quick] [--folder DIR] [--seeds N] [--json]

For each seed, `configs/osnet_ain_quickstart.yaml` searches on two synthetic domains with very different styles. The
found network is then trained with `configs/osnet_ain_quickstart_train.yaml` on the same domains, and so are OSNet
without IN, OSNet with IN in the stem alone (the network of the space without further IN), the published OSNet-AIN
and a random network of the space, all with the same size and seed. Each is evaluated on the test people of one of
these domains, and of a third, unseen one. A random block has IN with a probability of 3/4. Finished runs in the
folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from autoreid.spaces import Genotype
from autoreid.spaces.osnet_ain.genotype import OsnetAinGenotype

ROOT = Path(__file__).resolve().parents[1]
SEARCH, TRAINING = (ROOT / "configs" / f"osnet_ain_quickstart{which}.yaml" for which in ("", "_train"))
SEEN, UNSEEN = "people_a", "people_c"
#: The networks that are compared.
NETWORKS = ("found", "random", "OSNet", "IN in the stem", "OSNet-AIN")


def command(folder: Path, module: str, *arguments: str | Path) -> None:
    """Run a command of the package in a folder, with its output on stderr."""
    line = [sys.executable, "-m", f"autoreid.{module}", *map(str, arguments)]
    subprocess.run(line, cwd=folder, check=True, stdout=sys.stderr)


def search(folder: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Run a search, and return the chosen blocks and the share of the mixture with IN at the end."""
    name = f"search{seed}"
    command(folder, "train", "--config", SEARCH, f"task_name={name}", f"seed={seed}", *overrides)
    run = folder / "runs" / name
    genotype = Genotype.parse(
        json.dumps(json.loads((run / "result.json").read_text())["genotype"]), f"{run}/result.json"
    )
    assert isinstance(genotype, OsnetAinGenotype)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {"blocks": genotype.blocks, "in_share": last["blocks/in_share"]}


def recipe_of(folder: Path, network: str, seed: int) -> list[str | Path]:
    """Return the recipe for training a network, and the overrides that select the network."""
    if network == "OSNet":
        return [TRAINING, "model.name=osnet_x0_25", "model.options={}"]
    output = Path("derived") / f"{network.replace(' ', '_')}{seed}"
    source: list[str | Path] = [Path("runs") / f"search{seed}"]
    if network == "random":
        source += ["--random", str(seed)]
    elif network == "OSNet-AIN":
        source = [ROOT / "searched_genotypes" / "published" / "osnet_ain.json"]
    elif network == "IN in the stem":
        source = [folder / "plain.json"]
        OsnetAinGenotype.of_blocks(["plain"] * 6).save(folder / "plain.json")
    command(folder, "derive", *source, "--config", TRAINING, "--output", output)
    return [output / "config.yaml"]


def train(folder: Path, network: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """Train a network, and return its mAP on each target."""
    name = f"{network.replace(' ', '_')}-seed{seed}"
    recipe = recipe_of(folder, network, seed)
    targets = f"data.targets=[{UNSEEN}, {SEEN}]"
    command(folder, "train", "--config", *recipe, f"task_name={name}", f"seed={seed}", targets, *overrides)
    content = json.loads((folder / "runs" / name / "result.json").read_text())
    return {target: found["map"] for target, found in content["targets"].items()}


def spread(values: list[float]) -> dict[str, Any]:
    """Return mean, standard deviation and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": values}


def study(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do all runs, and return their results."""
    searches, rows = [], {network: [] for network in NETWORKS}  # type: ignore[var-annotated]
    for seed in range(arguments.seeds):
        searches.append(search(folder, seed, _epochs(arguments.search_epochs)))
        for network in NETWORKS:
            rows[network].append(train(folder, network, seed, _epochs(arguments.epochs)))
    report: dict[str, Any] = {
        "searches": searches,
        "in_share": spread([found["in_share"] for found in searches]),
        "blocks_with_in": spread([sum(block != "plain" for block in found["blocks"]) for found in searches]),
    }
    for network, results in rows.items():
        gain = [one[UNSEEN] - base[UNSEEN] for one, base in zip(results, rows["OSNet"], strict=True)]
        report[network] = {
            "unseen": spread([result[UNSEEN] for result in results]),
            "seen": spread([result[SEEN] for result in results]),
            "gain": spread(gain),
        }
    return report


def _epochs(epochs: int | None) -> list[str]:
    """Return overrides for a run with this number of epochs, evaluated at its end; None keeps the recipe's."""
    if epochs is None:
        return []
    warmup = f"training.warmup_epochs={epochs // 4}"
    return [f"training.epochs={epochs}", f"evaluation.every_epochs={epochs}", warmup]


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    for seed, found in enumerate(report["searches"]):
        print(f"seed {seed}: IN in {found['in_share']:.3f} of the mixture; {' '.join(found['blocks'])}")
    share, blocks = report["in_share"], report["blocks_with_in"]
    print(f"share of the mixture with IN {share['mean']:.3f} ± {share['deviation']:.3f} (chance 0.750)")
    print(f"blocks with IN {blocks['mean']:.1f} ± {blocks['deviation']:.1f} of 6 (chance 4.5)\n")
    print(f"{'mAP':<16}{'unseen domain':>18}{'beyond OSNet':>18}{'seen domain':>18}")
    for network in NETWORKS:
        row = report[network]
        cells = (
            f"{100 * row[key]['mean']:.1f} ± {100 * row[key]['deviation']:.1f} %"
            for key in ("unseen", "gain", "seen")
        )
        print(f"{network:<16}" + "".join(f"{cell:>18}" for cell in cells))


def main() -> None:
    """Do the runs that are missing, and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="number of searches, and of trainings of each network (default: 3)",
    )
    parser.add_argument("--epochs", type=int, help="epochs of a training (default: the recipe's)")
    parser.add_argument("--search-epochs", type=int, help="epochs of a search (default: the recipe's)")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch each")
    parser.add_argument("--folder", type=Path, help="keep the runs here (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = arguments.epochs = arguments.search_epochs = 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = study(folder.resolve(), arguments)
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)


if __name__ == "__main__":
    main()
