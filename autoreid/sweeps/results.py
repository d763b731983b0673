"""What the runs of a sweep have reached, and the means over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from autoreid.reporting.hparams import write_experiment, write_session
from autoreid.reporting.run_folder import RunFolder, steps_seconds
from autoreid.sweeps.sweep import Sweep
from autoreid.trials.statistics import error_of_mean
from autoreid.trials.trial_file import read_lines

SEED = "seed"
Row = Mapping[str, Any]


def figures(folder: RunFolder) -> dict[str, Any]:
    """Return the results of a run, or those of its last evaluated epoch if it has not finished; unknown ones are None.

    `map` and `rank1` are fractions of 1, `seconds` is the time of the steps, with the read-out of a search. `cost` is
    that of the genotype, for a search with `search.cost`.
    """
    result = _read_json(folder.result)
    metrics = [] if result else [line for line in read_lines(folder.metrics) if "map" in line]
    last = metrics[-1] if metrics else {}
    cmc = result.get("cmc") or {}
    return {
        "map": result.get("map", last.get("map")),
        "rank1": cmc.get("1", last.get("rank1")),
        "seconds": steps_seconds(result) if result else None,
        **{key: result.get(key) for key in ("parameters", "macs", "cost")},
    }


def means(sweep: Sweep, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return mean and standard error of the finished runs that differ in the seed only; empty without several seeds.

    Args:
        rows: of the runs; those with the state "finished" count.
    """
    if SEED not in sweep.keys:
        return []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(_without_seed(row["values"])), []).append(row)
    return [
        {
            "values": _without_seed(group[0]["values"]),
            "runs": len(group),
            **_mean(finished(group)),
        }
        for group in groups.values()
    ]


def finished(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of runs that have finished."""
    return [row for row in rows if row["state"] == "finished" and row["seconds"] is not None]


def _mean(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {"finished": len(rows)}
    for key in ("map", "rank1"):
        values = [row[key] for row in rows if row[key] is not None]
        found[key] = fmean(values) if values else None
        found[f"{key}_error"] = error_of_mean(values)
    seconds = [row["seconds"] for row in rows]
    return found | {"seconds": fmean(seconds) if seconds else None}


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != SEED}


def write_hparams(sweep: Sweep) -> None:
    """Write the swept values for the HParams tab of TensorBoard, and which runs have finished.

    Raises:
        RunError: a file cannot be written.
    """
    different: dict[str, list[Any]] = {key: [] for key in sweep.keys}
    for values in sweep.runs.values():
        for key, value in values.items():
            if value not in different[key]:
                different[key].append(value)
    write_experiment(sweep.folder, different)
    for name, values in sweep.runs.items():
        write_session(sweep.folder / name, values, different, sweep.is_finished(name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
