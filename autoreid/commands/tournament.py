"""Choose the best of several genotypes by short trainings on held-out identities."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoreid.config import Config
from autoreid.distributed import StopSignal
from autoreid.errors import DataError, RunError
from autoreid.files import make_folder, write_atomically
from autoreid.reporting.curves import curves_png
from autoreid.reporting.logs import start_logging
from autoreid.reporting.text_table import as_text
from autoreid.spaces.genotype import Genotype
from autoreid.trials.alone import single_process
from autoreid.trials.genotypes import Found, random_of_size, read_found
from autoreid.trials.halving import Round, halve
from autoreid.trials.runner import TrialRunner, total_seconds
from autoreid.trials.shared_units import claim
from autoreid.trials.trial import make_trial

#: What part of the recipe's epochs the first round has, unless --epochs says otherwise.
_FIRST_ROUND = 8


def read_entries(sources: Sequence[Path]) -> dict[str, Found]:
    """Read the genotypes, by name. Searches without a result are skipped, and so are duplicate genotypes.

    Raises:
        DataError: a source does not exist or is not a genotype, or no search has finished.
    """
    names = [source.name for source in sources]
    entries: dict[str, Found] = {}
    for source in sources:
        if source.is_dir() and not any((source / name).exists() for name in ("result.json", "genotype.json")):
            print(f"{source}: skipped, because it has no result", file=sys.stderr)
            continue
        found = read_found(source)
        equal = next((name for name, entry in entries.items() if entry.genotype == found.genotype), None)
        if equal is not None:
            print(f"{source}: skipped, because {equal} has the same genotype", file=sys.stderr)
            continue
        entries[source.name if names.count(source.name) == 1 else str(source)] = found
    if not entries:
        raise DataError(f"{', '.join(map(str, sources))}: none of these searches has finished")
    return entries


def add_random(entries: Mapping[str, Found], count: int, seed: int, recipe: Config) -> dict[str, Genotype]:
    """Return the genotypes of all entries, and random ones that have the sizes of the entries in turn."""
    genotypes = {name: found.genotype for name, found in entries.items()}
    originals = list(entries.values())
    for number in range(count):
        like = originals[number % len(originals)]
        # No run folder has a name with a colon.
        genotypes[f"random:{seed + number}"] = random_of_size(like, seed + number, recipe.model.options)
    return genotypes


def hold_tournament(
    genotypes: Mapping[str, Genotype], recipe: Config, epochs: int, runner: TrialRunner
) -> dict[str, Any] | None:
    """Run the rounds, and return the content of rounds.json; None if a stop signal has arrived.

    Raises:
        RunError: all trainings of a round failed.
    """
    names = list(genotypes)
    results: list[dict[str, dict[str, Any]]] = []

    def measure(entries: Sequence[int], epochs: int) -> list[float] | None:
        trials = {
            f"{names[entry]}, {_in_epochs(epochs)}": make_trial(
                recipe, genotypes[names[entry]], recipe.seed, epochs
            )
            for entry in entries
        }
        measured = runner.run(trials)
        if measured is None:
            return None
        by_name = dict(zip((names[entry] for entry in entries), measured, strict=True))
        if all(result["map"] is None for result in measured):
            name, result = next(iter(by_name.items()))
            raise RunError(f"all trainings failed, {name} with: {result['failed']}")
        results.append(by_name)
        return [-math.inf if result["map"] is None else result["map"] for result in measured]

    rounds = halve(len(names), epochs, measure)
    return None if rounds is None else _content(genotypes, rounds, results)


def _content(
    genotypes: Mapping[str, Genotype], rounds: Sequence[Round], results: Sequence[dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    names = list(genotypes)
    winner = names[rounds[-1].kept[0]] if rounds else names[0]
    shown = ("map", "rank1", "parameters", "macs", "seconds", "failed")
    return {
        "winner": winner,
        "genotype": genotypes[winner].model_dump(mode="json"),
        "seconds": total_seconds([result for of_round in results for result in of_round.values()]),
        "rounds": [
            {
                "epochs": one.epochs,
                "kept": [names[entry] for entry in one.kept],
                "results": {
                    name: {key: result[key] for key in shown if key in result}
                    for name, result in of_round.items()
                },
            }
            for one, of_round in zip(rounds, results, strict=True)
        ],
    }


def _in_epochs(epochs: int) -> str:
    return f"{epochs} epochs" if epochs > 1 else "1 epoch"


def as_table(content: Mapping[str, Any]) -> str:
    """Return the rounds as a table, with the mAP in percent of each network after each round."""
    rounds = content["rounds"]
    if not rounds:
        return f"winner: {content['winner']}, the only genotype"
    rows = [["mAP in % after", *(_in_epochs(one["epochs"]) for one in rounds)]]
    for name in rounds[0]["results"]:
        values = [one["results"].get(name, {}) for one in rounds]
        rows.append([name, *(_shown(value) for value in values)])
    return f"{as_text(rows)}\nwinner: {content['winner']}, after {content['seconds']:.0f} s of training"


def rounds_picture(rounds: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Return the mAP of each network against the epochs of its trainings as PNG; None without matplotlib."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for one in rounds:
        for name, result in one["results"].items():
            if result["map"] is not None:
                epochs, maps = points.setdefault(name, ([], []))
                epochs.append(one["epochs"])
                maps.append(100 * result["map"])
    return curves_png(points, "epochs of a training", "mAP in %", "rounds.png")


def _shown(result: Mapping[str, Any]) -> str:
    if not result:
        return ""
    return "failed" if result["map"] is None else f"{100 * result['map']:.1f}"


def execute(options: argparse.Namespace, recipe: Config) -> None:
    """Hold the tournament and write its results."""
    entries = read_entries(options.sources)
    genotypes = add_random(entries, options.random, options.seed, recipe)
    epochs = options.epochs or max(1, recipe.training.epochs // _FIRST_ROUND)
    folder: Path = options.output
    make_folder(folder, "choose another --output")
    with StopSignal() as stop, single_process(recipe.distributed, "a tournament") as world:
        start_logging(folder / "logs", world.rank)
        runner = TrialRunner.open(folder, recipe, world, stop)
        content = hold_tournament(genotypes, recipe, epochs, runner)
    if content is None:
        print(f"stopped by {stop.received}; to resume, repeat the same command", file=sys.stderr)
        return
    with claim(folder / "results.lock", wait=True):
        write_atomically(folder / "rounds.json", (json.dumps(content, indent=1) + "\n").encode())
        picture = rounds_picture(content["rounds"])
        if picture is not None:
            write_atomically(folder / "rounds.png", picture)
        genotypes[content["winner"]].save(folder / "genotype.json")
    print(as_table(content))
    print(
        f"next: python -m autoreid.derive {folder} --config {options.config} --output derived/{folder.name}"
    )
