"""The results of a study: study.json, its pictures and the table."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from autoreid.errors import RunError
from autoreid.files import write_atomically
from autoreid.reporting.curves import curves_png
from autoreid.reporting.strip_plot import Sample, draw_samples
from autoreid.trials.comparison import as_table, compare, difference_in_words, points
from autoreid.trials.shared_units import claim
from autoreid.trials.statistics import mean_interval
from autoreid.trials.study import Study


def write_results(study: Study, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Write study.json and study.png, and return the content of the former.

    Args:
        results: by name of the training; study.json lists the trainings without a result as missing.
    """
    found = {
        name: results[f"found{number}"]
        for number, name in enumerate(study.searches)
        if f"found{number}" in results
    }
    random = {name: result for name, result in results.items() if name.startswith("random")}
    content = compare(found, random, {name: study.search_seconds(name) for name in found})
    content["missing"] = [name for name in study.trial_names if name not in results]
    picture = io.BytesIO()
    samples = {"found": points(found.values()), "random": points(random.values())}
    if all(samples.values()):
        draw_samples(
            {name: Sample(values, mean_interval(values)) for name, values in samples.items()},
            "mAP in %",
            f"{difference_in_words(content['statistics'])}\nbars: 95 % confidence intervals of the means",
        ).save(picture, format="png")
    curves = cost_picture(content["equal_cost"])
    with claim(study.folder / "results.lock", wait=True):
        write_atomically(study.folder / "study.json", (json.dumps(content, indent=1) + "\n").encode())
        if picture.tell():
            write_atomically(study.folder / "study.png", picture.getvalue())
        if curves is not None:
            write_atomically(study.folder / "cost.png", curves)
    return content


def finish(study: Study, results: Mapping[str, dict[str, Any]]) -> None:
    """Write the results and print the table.

    Args:
        results: by name of the training.

    Raises:
        RunError: results are missing; names them.
    """
    content = write_results(study, results)
    print(as_table(content))
    print(f"{study.folder}: study.json and pictures")
    missing = content["missing"]
    if missing:
        searches = [name for name in study.searches if not study.is_finished(name)]
        unfinished = f"; searches that have not finished: {', '.join(searches)}" if searches else ""
        raise RunError(
            f"{study.folder}: {len(missing)} of {len(study.trial_names)} trainings have no result: "
            f"{', '.join(missing)}{unfinished}; to run them, repeat the command that started the study"
        )


def cost_picture(equal_cost: Mapping[str, Any]) -> bytes | None:
    """Return the picture of the best mAP against the cost as PNG; None without curves or without matplotlib."""
    curves = {
        f"best of the {kind} networks": (
            [point[0] for point in equal_cost[kind]],
            [point[1] for point in equal_cost[kind]],
        )
        for kind in ("found", "random")
        if equal_cost[kind]
    }
    return curves_png(curves, "seconds of searches and trainings", "expected mAP in %", "cost.png")
