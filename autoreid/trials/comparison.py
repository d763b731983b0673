"""Compare the results of found networks with those of random ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from autoreid.trials.equal_cost import at_equal_cost, cost_curve
from autoreid.trials.runner import total_seconds
from autoreid.trials.statistics import (
    mean_interval,
    permutation_p,
    rank_among,
    relative_improvement,
    runs_to_show,
    standard_error,
)

#: The difference that further runs should show, in points of mAP.
POINTS = 2.0
Results = Sequence[Mapping[str, Any]]


def compare(
    found: Mapping[str, Mapping[str, Any]],
    random: Mapping[str, Mapping[str, Any]],
    search_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the content of study.json.

    Failed trainings are listed, but are not part of the statistics. mAP values are fractions of 1 in the lists of
    networks, as in every other file, and points (percent) in the statistics.

    Args:
        found: results of trials, by name of the search.
        random: results of trials, by name.
        search_seconds: how long each search took.
    """
    maps_found, maps_random = points(found.values()), points(random.values())
    networks_found = [
        {
            "name": name,
            **_shown(result),
            "search_seconds": search_seconds[name],
            "rank_among_random": _rank(result, maps_random),
        }
        for name, result in found.items()
    ]
    return {
        "found": networks_found,
        "random": [{"name": name, **_shown(result)} for name, result in random.items()],
        "statistics": _statistics(maps_found, maps_random),
        "equal_cost": _equal_cost(found, random, search_seconds),
        "cost": {
            "search_seconds": sum(search_seconds.values()),
            "training_seconds": {
                "found": total_seconds(list(found.values())),
                "random": total_seconds(list(random.values())),
            },
        },
    }


def _equal_cost(
    found: Mapping[str, Mapping[str, Any]],
    random: Mapping[str, Mapping[str, Any]],
    search_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The curves of the best mAP against the cost, and the comparison at equal cost; failed trainings cost, too."""
    spent = {
        "found": [search_seconds[name] + result["seconds"] for name, result in found.items()],
        "random": [result["seconds"] for result in random.values()],
    }
    values = {"found": points(found.values()), "random": points(random.values())}
    if not all(values.values()):
        return {"found": [], "random": []}
    curves = {kind: cost_curve(maps, spent[kind]) for kind, maps in values.items()}
    numbers = at_equal_cost(curves["found"], curves["random"])
    if numbers is None:
        return dict(curves)
    best: dict[str, float] = {f"num_{kind}": number for kind, number in zip(curves, numbers, strict=True)}
    best |= {
        f"best_{kind}": curves[kind][number - 1][1] for kind, number in zip(curves, numbers, strict=True)
    }
    return {**curves, **best, "seconds": curves["found"][numbers[0] - 1][0]}


def points(results: Any) -> list[float]:
    """Return the mAP of the results that did not fail, in points."""
    return [100 * result["map"] for result in results if result["map"] is not None]


def _shown(result: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("map", "rank1", "parameters", "macs", "seconds", "seed", "epochs", "failed", "genotype")
    return {key: result[key] for key in keys if key in result}


def _rank(result: Mapping[str, Any], maps_random: Sequence[float]) -> int | None:
    return None if result["map"] is None else rank_among(100 * result["map"], maps_random)


def _statistics(found: Sequence[float], random: Sequence[float]) -> dict[str, Any]:
    """The statistics of two samples of mAP in points; None where there are too few values."""
    both = bool(found and random)
    needed = runs_to_show(POINTS, found, random)
    return {
        "mean_found": fmean(found) if found else None,
        "mean_random": fmean(random) if random else None,
        "interval_found": mean_interval(found),
        "interval_random": mean_interval(random),
        "difference": fmean(found) - fmean(random) if both else None,
        "standard_error": standard_error(found, random),
        "permutation_p": permutation_p(found, random) if both else None,
        "relative_improvement": relative_improvement(found, random) if both else None,
        "points_to_show": POINTS,
        "runs_to_show": needed,
        "more_searches": None if needed is None else max(0, needed - len(found)),
        "more_random": None if needed is None else max(0, needed - len(random)),
    }


def as_table(study: Mapping[str, Any]) -> str:
    """Return a table of the networks, and the comparison in words."""
    rows = [["", "mAP", "rank-1", "parameters", "MACs", "training", "search", "rank among random"]]
    count = 1 + sum(network["map"] is not None for network in study["random"])
    for network in [*study["found"], *study["random"]]:
        rank = network.get("rank_among_random")
        search = network.get("search_seconds")
        rows.append(
            [
                network["name"],
                *_percentages(network),
                f"{network['parameters']:,}",
                f"{network['macs'] / 1e6:,.1f} M",
                f"{network['seconds']:.0f} s",
                "" if search is None else f"{search:.0f} s",
                "" if rank is None else f"{rank} of {count}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "   ".join(
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *in_words(study)])


def _percentages(network: Mapping[str, Any]) -> tuple[str, str]:
    if network["map"] is None:
        return "failed", ""
    return f"{100 * network['map']:.1f} %", f"{100 * network['rank1']:.1f} %"


def in_words(study: Mapping[str, Any]) -> list[str]:
    """Return the comparison, one statement in each line."""
    values, cost = study["statistics"], study["cost"]
    lines = []
    for kind in ("found", "random"):
        if values[f"mean_{kind}"] is not None:
            lines.append(
                f"{kind}: mean mAP {values[f'mean_{kind}']:.1f} %{_interval(values[f'interval_{kind}'])}"
            )
    if values["difference"] is not None:
        lines += [difference_in_words(values)]
    if values["relative_improvement"] is not None:
        lines += [f"relative improvement over random sampling: {values['relative_improvement']:+.1f} %"]
    trainings = cost["training_seconds"]
    lines += [
        f"cost: searches {cost['search_seconds']:.0f} s, trainings of found networks {trainings['found']:.0f} s, of "
        f"random ones {trainings['random']:.0f} s"
    ]
    equal = study["equal_cost"]
    if equal["found"] and "seconds" not in equal:
        needed = math.ceil(equal["found"][0][0] / equal["random"][0][0])
        lines += [
            f"no comparison at equal cost: a found network cost as much as {needed} random ones, with its search; add "
            f"random networks"
        ]
    if "seconds" in equal:
        lines += [
            f"at equal cost ({equal['seconds']:.0f} s): the best of {equal['num_found']} found networks "
            f"{equal['best_found']:.1f} %, the best of {equal['num_random']} random ones {equal['best_random']:.1f} %"
        ]
    if values["runs_to_show"] is None:
        lines += ["too few runs for a standard error: at least 2 searches and 2 random genotypes are needed"]
    else:
        lines += [
            f"to show a difference of {values['points_to_show']:g} points (two-sided 5 %, power 80 %): "
            f"{values['runs_to_show']} of each kind, that is {values['more_searches']} more searches and "
            f"{values['more_random']} more random genotypes"
        ]
    return lines


def difference_in_words(values: Mapping[str, Any]) -> str:
    """Return the difference of the means in words."""
    error = values["standard_error"]
    shown = " points" if error is None else f" ± {error:.1f} points (standard error over searches)"
    return f"difference: {values['difference']:+.1f}{shown}, permutation p = {values['permutation_p']:.3g}"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f", 95 % confidence interval {interval[0]:.1f} to {interval[1]:.1f} %"
